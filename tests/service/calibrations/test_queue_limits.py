"""A full queue refuses what needs a job of its own, and says when to come again."""

import pytest

from fimlora_contract.workers import Worker
from fimlora_jobs.store import COUNTERS
from fimlora_jobs.workers import WorkerRegistry
from fimlora_service.app import create_app
from fimlora_service.calibrations.queue_limits import LONGEST_S, next_end_s
from support.testclient import TestClient

MANY = {"source": "inline", "rows": [{"text": f"text {n}", "label": n % 2} for n in range(80)]}


@pytest.fixture(params=["max_open_jobs", "max_open_jobs_per_tenant"])
def full(request, settings, body):
    """A service with one open job, where no more are allowed, and what it refuses with."""
    app = create_app(settings.model_copy(update={request.param: 1}))
    refusals = {
        "max_open_jobs": (503, "queue_full"),
        "max_open_jobs_per_tenant": (429, "quota_exceeded"),
    }
    with TestClient(app, raise_server_exceptions=False) as http:
        open_id = http.post("/calibrate", json=body).json()["id"]
        yield http, open_id, refusals[request.param]


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("/calibrate", {"budget": 3}),
        ("/calibrate", {"force": True}),
        ("/compare", {"methods": ["fim", "uniform"]}),
        ("/evaluations", {"dataset": MANY}),
    ],
)
def test_what_needs_a_job_of_its_own_is_refused(full, body, path, change):
    """A problem with Retry-After; the idempotency key is free for the next try."""
    http, open_id, refusal = full
    headers = {"Idempotency-Key": "k"}

    refused = http.post(path, json=body | change, headers=headers)
    http.post(f"/jobs/{open_id}/cancel")
    later = http.post(path, json=body | change, headers=headers)

    assert (refused.status_code, refused.json()["code"]) == refusal
    assert refused.headers["Retry-After"] == "30"
    assert later.status_code == 202


def test_a_retry_is_refused_too(full, body):
    """It is one more job, whatever the job before has come to."""
    http, open_id, refusal = full
    http.post(f"/jobs/{open_id}/cancel")
    other = http.post("/calibrate", json=body | {"budget": 3}).json()["id"]

    refused = http.post(f"/jobs/{open_id}/retry")
    http.post(f"/jobs/{other}/cancel")

    assert (refused.status_code, refused.json()["code"]) == refusal
    assert http.post(f"/jobs/{open_id}/retry").status_code == 202


def test_what_needs_no_job_is_answered(full, body, succeed):
    """A shared job, a repetition under a key, a cached result, an estimate."""
    http, open_id, _ = full
    keyed = {"Idempotency-Key": "k"}
    shared = http.post("/calibrate", json=body, headers=keyed)
    repeated = http.post("/calibrate", json=body, headers=keyed)
    succeed(open_id)
    other = http.post("/calibrate", json=body | {"budget": 3})
    cached = http.post("/calibrate", json=body)

    assert [shared.json()["id"], repeated.json()["id"]] == [open_id] * 2
    assert other.status_code == 202  # the place was free again
    assert (cached.status_code, cached.json()["id"]) == (200, open_id)
    assert http.post("/estimate", json=body | {"budget": 5}).status_code == 200


@pytest.mark.parametrize(
    ("seconds", "n_workers", "expected"), [(100, 1, 25), (100, 3, 9), (0.1, 1, 1), (1e6, 1, LONGEST_S)]
)  # fmt: skip
def test_the_time_to_come_again_goes_by_what_is_known(store, seconds, n_workers, expected):
    """Four jobs took so long in sum, and so many workers are alive."""
    store.redis.hset(store.key(COUNTERS), mapping={"measured": 4, "seconds": seconds})
    for n in range(n_workers):
        times = dict.fromkeys(("since", "started_at", "last_seen"), 0)
        worker = {"name": f"w{n}", "device": "cpu", "state": "idle"} | times
        WorkerRegistry(store).announce(Worker.model_validate(worker))

    assert next_end_s(store) == expected
