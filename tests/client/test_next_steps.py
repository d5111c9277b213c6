"""Every refusal says what to do next: by the service, by the client, by the command line."""

import ast
import inspect
from pathlib import Path

import pytest

import fimlora_client
from fimlora_client import errors
from fimlora_client.cli.common.next_steps import RETRY, ROUTE, next_step_of
from fimlora_client.errors import ERRORS, ClientError, error_of, failure_of, problem_of
from fimlora_client.stack.errors import StackError
from fimlora_contract.jobs import Job
from fimlora_contract.problems import PROBLEMS
from fimlora_service import errors as service_errors

OWN = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ClientError) and not issubclass(kind, errors.ApiError)
]
MADE_OF_AN_ANSWER = {ClientError}  # a base class, that nothing raises by itself


def job_with(code, *, retryable):
    return Job.model_validate({
        "id": "job_1", "kind": "calibration", "status": "failed", "attempt": 1, "request": {},
        "resolved": {}, "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        "error": {"code": code, "detail": "x", "retryable": retryable}, "links": {},
    })  # fmt: skip


@pytest.mark.parametrize("code", PROBLEMS)
def test_every_problem_has_a_next_step(code):
    """In the words of the API for programs, in commands and options for people."""
    told = PROBLEMS[code].next_step
    typed = next_step_of(error_of(problem_of(code, "x")))

    assert told.endswith((".", "!"))
    assert typed.endswith(".")
    assert not ROUTE.search(typed), "the command line speaks of commands"
    assert "Retry-After" not in typed


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_what_the_client_finds_by_itself_has_a_next_step(kind):
    """Whoever raises it may know a better one."""
    assert kind in MADE_OF_AN_ANSWER or kind("x").next_step
    assert kind("x", next_step="Do this.").next_step == "Do this."


def test_every_code_of_the_service_has_its_class_on_both_sides():
    """So that none falls back to a base class without a step of its own."""
    raised = {
        kind.code
        for _, kind in inspect.getmembers(service_errors, inspect.isclass)
        if issubclass(kind, service_errors.ServiceError)
    }

    assert raised <= PROBLEMS.keys()
    assert set(PROBLEMS) <= ERRORS.keys()


def test_what_stops_the_stack_always_says_what_to_do():
    """The step is the second argument of each, looked up in the source."""
    lacking = [
        f"{path.name}:{call.lineno}"
        for path in Path(fimlora_client.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == StackError.__name__
        and len(call.args) < 2
    ]

    assert lacking == []


@pytest.mark.parametrize("code", PROBLEMS)
@pytest.mark.parametrize("retryable", [True, False])
def test_a_retry_is_offered_only_where_it_can_help(code, retryable):
    """The worker knows; a mistake in the request is not mended by sending it again."""
    told = PROBLEMS[code].next_step
    typed = next_step_of(failure_of(job_with(code, retryable=retryable)))

    assert ("fimlora retry job_1" in typed) == retryable or told == RETRY or code == "canceled"
    assert typed.endswith(".")


def test_a_step_that_the_service_knows_better_is_kept():
    """Unless it is a route, which nobody types."""
    better = problem_of("unauthenticated", "x").model_copy(update={"next_step": "Do this."})
    route = problem_of("no_pattern", "x").model_copy(
        update={"next_step": "PUT /rank-patterns."}
    )

    assert next_step_of(error_of(better)) == "Do this."
    assert "fimlora" in next_step_of(error_of(route))
