"""Equal requests that come while one of them is open share its job."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from fimlora_contract.jobs import JobStatus
from fimlora_jobs.store import RequestTaken, StaleAttempt
from support.service import commit_result


def test_a_hundred_equal_requests_at_once_make_one_job(http, body, store):
    """Whoever comes first, there is one job in the queue, and all get it."""
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: http.post("/calibrate", json=body), range(100)))

    assert {answer.status_code for answer in answers} == {202}
    [job_id] = {answer.json()["id"] for answer in answers}
    assert [record.id for record in store.page(limit=10)] == [job_id]
    assert http.get(f"/jobs/{job_id}").json()["requests"] == 100


def test_a_running_job_is_shared(http, body, store):
    """Also in its second attempt."""
    first = http.post("/calibrate", json=body).json()["id"]
    store.start(first, 1, worker="w")

    while_running = http.post("/calibrate", json=body)
    store.requeue(first, 1, counted=False)
    store.start(first, 2, worker="w")
    once_more = http.post("/calibrate", json=body)

    assert (while_running.status_code, while_running.json()["id"]) == (202, first)
    assert while_running.headers["Location"] == f"/jobs/{first}"
    assert while_running.headers["Retry-After"]
    assert once_more.json()["id"] == first


def test_a_job_that_has_just_succeeded_answers_before_it_is_remembered(
    http, body, data_dir, store
):
    """Between a job's end and its entry in the cache no second job is made."""
    first = http.post("/calibrate", json=body).json()["id"]
    store.start(first, 1, worker="w")
    store.succeed(first, 1, commit_result(data_dir))

    again = http.post("/calibrate", json=body)

    assert (again.status_code, again.json()["id"], again.json()["cached"]) == (200, first, True)


def test_force_and_another_budget_have_jobs_of_their_own(http, body, job_id):
    """Only equal requests share, and none that asks to be measured in any case."""
    others = [
        http.post("/calibrate", json=body | more) for more in ({"force": True}, {"budget": 9})
    ]

    assert len({job_id, *(answer.json()["id"] for answer in others)}) == 3
    assert http.post("/calibrate", json=body).json()["id"] == job_id


def test_a_cancel_takes_back_one_request(http, body, job_id):
    """A job that two share is canceled by the second cancel, not by the first."""
    http.post("/calibrate", json=body)

    first = http.post(f"/jobs/{job_id}/cancel")
    second = http.post(f"/jobs/{job_id}/cancel")

    assert (first.status_code, first.json()["status"], first.json()["requests"]) == (
        200,
        "queued",
        1,
    )
    assert (second.status_code, second.json()["status"]) == (200, "canceled")
    assert http.post(f"/jobs/{job_id}/cancel").status_code == 409


def test_a_job_that_all_gave_up_cannot_be_joined(http, body, job_id, store):
    """An equal request that comes while the job is being stopped gets a new one."""
    store.start(job_id, 1, worker="w")
    assert http.post(f"/jobs/{job_id}/cancel").json()["status"] == "canceling"

    again = http.post("/calibrate", json=body)

    assert again.status_code == 202
    assert again.json()["id"] != job_id


@pytest.mark.parametrize("end", ["failed", "deleted"])
def test_a_job_that_came_to_nothing_is_replaced(end, http, body, job_id, store):
    """A failure is not shared with whoever comes later."""
    store.request_cancel(job_id)
    if end == "deleted":
        store.delete(job_id)

    again = http.post("/calibrate", json=body)

    assert again.status_code == 202
    assert again.json()["id"] != job_id


def test_retries_of_one_job_share_the_new_one(http, job_id, store):
    """Who repeats a retry finds what the first has queued."""
    store.request_cancel(job_id)

    answers = [http.post(f"/jobs/{job_id}/retry") for _ in range(3)]

    assert len({answer.json()["id"] for answer in answers} | {job_id}) == 2


def test_an_idempotency_key_stands_for_the_shared_job(http, body, job_id, store):
    """Repeating a keyed request neither joins again nor starts over when the job has ended."""
    keyed = {"Idempotency-Key": "k"}
    for _ in range(3):
        assert http.post("/calibrate", json=body, headers=keyed).json()["id"] == job_id
    assert http.get(f"/jobs/{job_id}").json()["requests"] == 2

    store.request_cancel(job_id)

    assert http.post("/calibrate", json=body, headers=keyed).json()["status"] == "canceled"


def test_only_one_of_two_can_take_a_requests_place(job_id, store):
    """The store refuses the slower of two jobs, and leaves no trace of it."""
    fields = {
        "request": {},
        "resolved": {},
        "digest": store.get(job_id).fields["request_digest"],
    }

    with pytest.raises(RequestTaken):
        store.create("job_2", **fields, in_place_of="")

    assert [record.id for record in store.page(limit=10)] == [job_id]
    assert store.create("job_2", **fields, in_place_of=job_id).status is JobStatus.QUEUED
    assert store.shared(fields["digest"]) == "job_2"


def test_what_has_ended_can_be_neither_joined_nor_left(job_id, store):
    """Numbers of requests change on open jobs only."""
    store.request_cancel(job_id)

    assert store.join(job_id) is None
    with pytest.raises(StaleAttempt):
        store.withdraw(job_id)
    assert store.get(job_id).fields["requests"] == "1"
