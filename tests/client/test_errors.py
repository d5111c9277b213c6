"""Every problem code has an exception class of its own."""

import pickle

import pytest

from fimlora_client import bodies, errors
from fimlora_client.calls import Answer, raise_for_problem, read_answer
from fimlora_client.cli.common.console import exit_code
from fimlora_contract.jobs import Job, JobError, JobStatus
from fimlora_contract.problems import PROBLEMS


def make_job(**fields):
    values = {"id": "job_1", "status": "failed", "attempt": 1, "created_at": 0}
    return Job.model_validate(values | {"request": {}, "resolved": {}} | fields)


def test_there_is_one_class_per_problem_code():
    """A code without a class, or a class without a code, would surprise a caller."""
    assert set(errors.ERRORS) == set(PROBLEMS)
    assert len(set(errors.ERRORS.values())) == len(PROBLEMS)


@pytest.mark.parametrize("code", PROBLEMS)
def test_an_answer_raises_the_class_of_its_code(code):
    """The exception carries all that the problem document said, and survives pickling."""
    problem = errors.problem_of(code, "what happened").model_copy(update={"request_id": "r1"})
    answer = Answer(problem.status, {}, problem.model_dump_json().encode())

    with pytest.raises(errors.ERRORS[code], match="what happened") as caught:
        raise_for_problem(answer)

    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert (error.status, error.code) == (PROBLEMS[code].status, code)
        assert (error.request_id, error.problem) == ("r1", problem)
        assert error.next_step == PROBLEMS[code].next_step


@pytest.mark.parametrize(
    "code", [c for c, kind in PROBLEMS.items() if kind.status in {404, 410}]
)
def test_a_script_can_tell_what_is_not_there(code):
    """Exit code 3, but for a route: then it is the address that is wrong."""
    error = errors.error_of(errors.problem_of(code, "gone"))

    assert exit_code(error) == (1 if code == "not_found" else 3)


def test_a_code_of_a_newer_service_is_a_plain_api_error():
    """An old client says what it was told."""
    body = errors.problem_of("internal", "too many moons").model_copy(update={"code": "moons"})

    with pytest.raises(errors.ApiError, match="too many moons") as caught:
        raise_for_problem(Answer(422, {}, body.model_dump_json().encode()))

    assert type(caught.value) is errors.ApiError
    assert caught.value.code == "moons"


@pytest.mark.parametrize("status", [200, 404, 502])
def test_an_answer_of_something_else_is_told_apart(status):
    """A proxy's page of HTML names the address as the thing to check."""
    with pytest.raises(errors.ApiError, match="<html>") as caught:
        read_answer(Answer(status, {"x-request-id": "r2"}, b"<html>"), Job)

    assert caught.value.status == status
    assert caught.value.request_id == "r2"
    assert "FIMLORA_URL" in caught.value.next_step


def test_a_job_that_failed_raises_the_class_of_its_error():
    """Where the code belongs to jobs alone; else it is a failed job with that code."""
    lost = make_job(error=JobError(code="worker_lost", detail="thrice"))
    missing = make_job(error=JobError(code="model_not_found", detail="no model 'x'"))

    assert isinstance(errors.failure_of(lost), errors.WorkerLost)
    assert isinstance(errors.failure_of(lost), errors.JobFailed)
    failure = errors.failure_of(missing)
    assert type(failure) is errors.JobFailed
    assert failure.code == "model_not_found"
    assert failure.job is missing
    assert str(failure) == "job job_1 failed: no model 'x'"


def test_a_canceled_job_raises_its_own_class():
    """Canceling is not failing."""
    failure = errors.failure_of(make_job(status=JobStatus.CANCELED))

    assert isinstance(failure, errors.JobCanceled)
    assert not isinstance(failure, errors.JobFailed)
    assert pickle.loads(pickle.dumps(failure)).job == failure.job


def test_a_wrong_field_is_refused_before_anything_is_sent():
    """The same exception as the service's refusal, naming the field."""
    with pytest.raises(errors.ValidationFailed, match=r"budget.*exactly one of"):
        bodies.build_request(None, base_model="m", dataset="d", budget={})
    with pytest.raises(
        errors.ValidationFailed, match=r"budgets: there is no such field; there are .*'budget'"
    ):
        bodies.build_request(None, base_model="m", dataset="d", budget=8, budgets=9)
