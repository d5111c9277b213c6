"""The client through the real app and the real worker code to the real engine."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fimlora_client import CalibrationRequest, Client, JobCanceled, JobFailed
from fimlora_client.errors import (
    BudgetInfeasible,
    DatasetEmpty,
    DatasetInUse,
    DatasetNotFound,
    DatasetSchema,
    InvalidFile,
    JobAlreadyFinished,
    JobNotFinished,
    JobNotFound,
    ModelNotFound,
    ValidationFailed,
)
from fimlora_contract.jobs import JobError, JobStatus
from support.jobs import LABELLED

FIELDS = {"base_model": "tiny", "budget": 4, "calibration": {"n_batches": 2}}


@pytest.fixture
def inline():
    return FIELDS | {"dataset": {"source": "inline", "rows": LABELLED}}


def test_a_calibration_from_upload_to_adapter(client, rows, tmp_path):
    """What the client delivers is a config that PEFT accepts and the plan asks for."""
    dataset = client.datasets.upload(rows)
    result = client.calibrate(**FIELDS, dataset=dataset.id).wait()
    files = client.jobs.download(result.job.id, tmp_path / "adapter")

    config = result.to_lora_config()
    assert dataset.rows == len(LABELLED)
    assert sum(result.rank_pattern.values()) == 4 * len(result.rank_map.modules)
    assert config.rank_pattern == result.adapter_config["rank_pattern"]
    assert json.loads(files["adapter_config.json"].read_text()) == result.adapter_config
    assert {"adapter_config.json", "rank_map.json", "rank_map.svg"} <= set(files)


def test_an_equal_request_is_answered_from_the_cache(client, inline):
    """The second handle has its result at once and says so."""
    first = client.calibrate(**inline)
    first.wait()

    second = client.calibrate(**inline)

    assert (first.cached, second.cached) == (False, True)
    assert second.id == first.id
    assert second.wait().cached
    assert second.refresh().cached


def test_a_draft_is_the_short_answer_for_the_same_plan(client, inline):
    """It says so itself, and what the whole plan spends."""
    job = client.calibrate(**inline).wait().job

    draft = client.jobs.draft(job.id, budget=6).model_dump(mode="json")
    whole = client.jobs.allocate(job.id, budget=6)

    assert (draft["object"], draft["job_id"]) == ("plan_draft", job.id)
    assert draft.get("spent", draft.get("rank_map", {}).get("spent")) == whole.rank_map.spent


def test_an_estimate_starts_nothing(client, inline):
    """It tells what the service would do with the same request, before and after."""
    inline = inline | {"target_modules": ["query", "value"]}
    before = client.estimate(**inline)
    assert client.jobs.list().data == []
    job = client.calibrate(**inline).wait().job

    after = client.estimate(**inline)

    assert (before.outcome, after.outcome) == ("measured", "cached")
    assert before.request_digest == after.request_digest
    assert after.job_id == job.id
    assert before.model.target_modules == 4


def test_a_request_that_only_wants_to_be_validated_is_no_job(client, inline):
    """The caller is told where to ask."""
    request = CalibrationRequest.model_validate(inline | {"validate_only": True})

    with pytest.raises(ValidationFailed, match=r"estimate\(\)"):
        client.calibrate(request)

    assert client.estimate(request).outcome == "measured"


def test_the_answer_can_wait_for_the_result(client, inline, run_queue):
    """One exchange is enough when the job ends in time."""
    client.calibrate(**inline).wait()
    again = inline | {"force": True}

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.calibrate, **again, wait=60)
        while not asked.done():
            run_queue()
            time.sleep(0.05)

    assert asked.result().job.status is JobStatus.SUCCEEDED
    assert not asked.result().cached


def test_a_dataset_can_be_looked_at_and_deleted(client, rows):
    """Unless an open job needs it."""
    dataset = client.datasets.upload(rows)
    job = client.calibrate(**FIELDS, dataset=dataset.id)

    with pytest.raises(DatasetInUse, match=job.id):
        client.datasets.delete(dataset.id)
    job.cancel()

    assert client.datasets.retrieve(dataset.id) == dataset
    client.datasets.delete(dataset.id)
    with pytest.raises(DatasetNotFound, match=dataset.id):
        client.datasets.retrieve(dataset.id)


def test_rows_can_be_uploaded_without_a_file(client):
    """The same rows are the same dataset."""
    ids = {client.datasets.upload(LABELLED).id for _ in range(2)}

    assert ids == {dataset.id for dataset in client.datasets.list().data}


def test_events_tell_the_whole_story(client, inline):
    """From queued to the end, with a batch number for each batch."""
    handle = client.calibrate(**inline)
    handle.wait()

    events = list(handle.events())

    assert events[0].status is JobStatus.QUEUED
    assert events[-1].status is JobStatus.SUCCEEDED
    assert [e.id for e in client.jobs.events(handle.id, after=events[-2].id)] == [events[-1].id]


def test_a_result_is_refused_before_the_end(client, inline):
    """Asking too early is its own error."""
    with pytest.raises(JobNotFinished):
        client.calibrate(**inline).result()


def test_a_job_can_be_canceled_once(client, inline):
    """Waiting for it raises, canceling it again is refused."""
    handle = client.calibrate(**inline)

    assert handle.cancel().status is JobStatus.CANCELED
    with pytest.raises(JobCanceled):
        handle.wait()
    with pytest.raises(JobAlreadyFinished, match=handle.id):
        handle.cancel()
    with pytest.raises(JobCanceled):
        handle.result()


def test_a_failed_job_raises_with_the_workers_sentence(client, store, inline):
    """What went wrong over there reaches the caller here."""
    handle = client.calibrate(**inline)
    store.start(handle.id, 1, worker="test")
    store.fail(handle.id, 1, JobError(code="numerical_failure", detail="loss is nan"))

    with pytest.raises(JobFailed, match="loss is nan") as caught:
        handle.wait()

    assert caught.value.job.error.code == caught.value.code == "numerical_failure"


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"base_model": "nobody"}, ModelNotFound, r"'nobody'.*tiny"),
        ({"dataset": {"source": "inline", "rows": [{"a": 1}]}}, DatasetSchema, r"\['a'\]"),
        ({"budget": {"parameters": 3}, "target_modules": ["query"]}, BudgetInfeasible, "3"),
        ({"budget": 0}, ValidationFailed, r"budget\.rank"),
        ({"target_modules": ["nothing"]}, Exception, "nothing"),
    ],
    ids=["model", "columns", "parameters", "rank", "modules"],
)
def test_a_refusal_names_what_was_wrong(client, inline, change, kind, message):
    """Before anything is queued."""
    with pytest.raises(kind, match=message):
        client.calibrate(**(inline | change))

    assert client.jobs.list().data == []


def test_uploads_that_cannot_be_used_are_refused(client, tmp_path):
    """A wrong file is refused here, a wrong row over there with its line."""
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a", "label": 1}\n{"text": \n')

    with pytest.raises(InvalidFile, match=r"rows\.txt is not one of"):
        client.datasets.upload(tmp_path / "rows.txt")
    with pytest.raises(InvalidFile, match=r"cannot read .*none\.jsonl"):
        client.datasets.upload(tmp_path / "none.jsonl")
    with pytest.raises(DatasetSchema, match="line 2"):
        client.datasets.upload(broken)
    with pytest.raises(DatasetEmpty):
        client.datasets.upload([])


def test_pages_of_jobs_follow_each_other(client, inline):
    """Newest first, and the cursor leads on."""
    ids = [client.calibrate(**inline | {"budget": 4 + n}).id for n in range(3)]

    first = client.jobs.list(limit=2)
    second = client.jobs.list(limit=2, cursor=first.next_cursor)

    assert [job.id for job in first.data + second.data] == ids[::-1]
    assert second.next_cursor is None


def test_the_rest_of_the_api(client):
    """Models, version and health; an unknown job is not found."""
    assert [model.id for model in client.models.list().data] == ["tiny"]
    assert client.version().api == "v1"
    assert client.liveness().status == "ok"
    assert "# TYPE" in client.metrics()
    assert client.health().checks["redis"] == "ok"
    with pytest.raises(JobNotFound, match="job_none"):
        client.jobs.retrieve("job_none")


def test_the_address_comes_from_the_environment(monkeypatch):
    """Unless one is given."""
    monkeypatch.setenv("FIMLORA_URL", "http://calibration.test:81")

    with Client() as from_environment, Client("http://other.test") as given:
        assert from_environment.base_url == "http://calibration.test:81"
        assert given.base_url == "http://other.test"
