"""POST /calibrate with ``Prefer: wait``."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fimlora_service.app import create_app
from support.testclient import TestClient


@pytest.fixture
def when_queued(store):
    """Do something to the job as soon as there is one, in another thread."""
    threads = []

    def start(act) -> None:
        def watch() -> None:
            deadline = time.monotonic() + 20
            while not (ids := [*store.open_jobs()]) and time.monotonic() < deadline:
                time.sleep(0.01)
            act(ids[0])

        threads.append(threading.Thread(target=watch))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def test_who_waits_gets_the_result(http, body, succeed, when_queued):
    """200 with the job, in one exchange."""
    when_queued(succeed)

    answer = http.post("/calibrate", json=body, headers={"Prefer": "wait=10"})

    job = answer.json()
    assert (answer.status_code, job["status"], job["cached"]) == (200, "succeeded", False)
    assert answer.headers["Preference-Applied"] == "wait=10"
    assert answer.headers["Location"] == f"/jobs/{job['id']}"
    assert "Retry-After" not in answer.headers


def test_a_job_that_ends_without_a_result_is_an_end_too(http, body, store, when_queued):
    """The status says how it ended."""
    when_queued(store.request_cancel)

    answer = http.post("/calibrate", json=body, headers={"Prefer": "wait=10"})

    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")


def test_who_has_waited_long_enough_gets_the_queued_job(http, body):
    """202, as without waiting."""
    answer = http.post("/calibrate", json=body, headers={"Prefer": "wait=1"})

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.headers["Preference-Applied"] == "wait=1"
    assert "Retry-After" in answer.headers


def test_without_the_preference_nothing_is_said_of_it(http, body):
    """Also when it is not understood."""
    answer = http.post("/calibrate", json=body, headers={"Prefer": "wait=long"})

    assert answer.status_code == 202
    assert "Preference-Applied" not in answer.headers


def test_a_repeated_key_waits_for_the_same_job(http, body, succeed, when_queued, job_id):
    """Whoever repeats a request because the first answer was lost may wait, too."""
    headers = {"Idempotency-Key": "k", "Prefer": "wait=10"}
    first = http.post(
        "/calibrate", json=body | {"force": True}, headers={"Idempotency-Key": "k"}
    )
    http.post(f"/jobs/{job_id}/cancel")
    when_queued(succeed)

    again = http.post("/calibrate", json=body | {"force": True}, headers=headers)

    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert again.json()["status"] == "succeeded"


def test_a_job_stays_accepted_when_redis_goes_away_in_the_wait(http, body, store, when_queued):
    """The wait ends, the answer is still the job."""

    def forget(job_id: str) -> None:
        store.redis.delete(f"fimlora:job:{job_id}")

    when_queued(forget)

    answer = http.post("/calibrate", json=body, headers={"Prefer": "wait=10"})

    assert (answer.status_code, answer.json()["status"]) == (202, "queued")


def test_a_stopping_service_lets_go_of_who_waits(settings, body):
    """A restart takes no minute."""
    stopping = threading.Event()
    with (
        TestClient(create_app(settings, stopping=stopping)) as http,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(http.post, "/calibrate", json=body, headers={"Prefer": "wait=60"})
        time.sleep(0.2)
        stopping.set()

        assert waiting.result(timeout=20).status_code == 202
