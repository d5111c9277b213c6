"""GET /metrics."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from fimlora_contract import __version__
from fimlora_contract.jobs import JobError
from fimlora_jobs.counters import count_work
from fimlora_service.app import create_app
from support.presence import GPU, enter_worker
from support.service import ROWS
from support.testclient import TestClient

ROOT = Path(__file__).parents[3]

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(http: TestClient) -> Samples:
    """Every sample by name and labels, as Prometheus' own parser reads them."""
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


def record(http: TestClient, **fields: object) -> str:
    """Have a job accepted."""
    body = {"base_model": "local:tiny", "dataset": {"source": "inline", "rows": ROWS}, **fields}
    return http.post("/calibrate", json=body).json()["id"]


def test_jobs_are_counted_by_state(http, body, store, succeed):
    """Open ones as they stand, ended ones since the beginning, also when forgotten."""
    ids = [http.post("/calibrate", json=body | {"budget": n}).json()["id"] for n in range(1, 6)]
    succeed(ids[0])
    store.request_cancel(ids[1])
    store.fail(ids[2], 1, JobError(code="internal", detail="x"))
    store.start(ids[3], 1, worker="w")
    store.delete(ids[0])

    samples = read(http)

    assert value(samples, "fimlora_jobs_open", status="queued") == 1
    assert value(samples, "fimlora_jobs_open", status="running") == 1
    for status in ("succeeded", "failed", "canceled"):
        assert value(samples, "fimlora_jobs_ended_total", status=status) == 1
    assert value(samples, "fimlora_queue_length") == 5
    assert 0 < value(samples, "fimlora_oldest_queued_job_seconds") < 60
    assert value(samples, "fimlora_redis_up") == 1


def test_durations_are_those_of_measurements(http, body, store, redis_client):
    """In classes; a job that measured nothing would make them look short."""
    for budget, seconds in ((1, 0.5), (2, 20), (3, 20_000)):
        id_ = http.post("/calibrate", json=body | {"budget": budget}).json()["id"]
        store.start(id_, 1, worker="w")
        key = f"fimlora:job:{id_}"
        began = int(redis_client.hget(key, "started_at"))
        redis_client.hset(key, "started_at", began - int(seconds * 1000))
        store.succeed(id_, 1, {})
    id_ = http.post("/calibrate", json=body | {"budget": 4}).json()["id"]
    redis_client.hset(f"fimlora:job:{id_}", "statistics_from", "job_0")
    store.start(id_, 1, worker="w")
    store.succeed(id_, 1, {})

    samples, name = read(http), "fimlora_calibration_duration_seconds"

    within = {le: value(samples, f"{name}_bucket", le=le) for le in ("1.0", "30.0", "10800.0")}
    assert within == {"1.0": 1, "30.0": 2, "10800.0": 2}
    assert value(samples, f"{name}_count") == value(samples, f"{name}_bucket", le="+Inf") == 3
    assert value(samples, f"{name}_sum") == pytest.approx(20_020.5, abs=5)


def test_accepted_requests_are_counted_by_what_they_cost(http, body, succeed):
    """A cache that works shows."""
    headers = {"Idempotency-Key": "k"}
    job_id = http.post("/calibrate", json=body, headers=headers).json()["id"]
    http.post("/calibrate", json=body, headers=headers)
    succeed(job_id)
    http.post("/calibrate", json=body)
    http.post("/calibrate", json=body | {"budget": 0})

    samples = read(http)

    counted = {
        outcome: value(samples, "fimlora_calibrations_accepted_total", outcome=outcome)
        for outcome in ("measured", "repeated", "cached", "replanned")
    }
    assert counted == {"measured": 1, "repeated": 1, "cached": 1, "replanned": None}


def test_workers_are_counted_by_state_and_device(http, store):
    """Their names are no labels."""
    enter_worker(store, name="w1")
    enter_worker(store, name="w2", hardware=GPU).begin("job_0-1")

    samples = read(http)

    assert value(samples, "fimlora_workers", state="idle", device="cpu") == 1
    assert value(samples, "fimlora_workers", state="busy", device="cuda") == 1
    assert value(samples, "fimlora_workers", state="busy", device="cpu") == 0


def test_attempts_are_counted_by_why_they_ended(http, store):
    """Lost ones show while their job still goes on; an orderly stop is none of them."""
    job_id = record(http, budget=8)
    store.start(job_id, 1, worker="w")
    store.requeue(job_id, 1, counted=False)
    store.requeue(job_id, 2)
    store.start(job_id, 3, worker="w")
    store.succeed(job_id, 3, {})
    failed, canceled = record(http, budget=7), record(http, budget=6)
    store.fail(failed, 1, JobError(code="model_invalid", detail="x"))
    store.start(canceled, 1, worker="w")
    store.request_cancel(canceled)
    store.confirm_cancel(canceled, 1)

    samples, name = read(http), "fimlora_attempts_ended_total"

    counted = {
        dict(labels)["reason"]: n for (found, labels), n in samples.items() if found == name
    }
    assert counted == {
        "succeeded": 1, "canceled": 1, "handed_over": 1, "worker_lost": 1, "model_invalid": 1,
        "out_of_memory_host": 0, "storage_unavailable": 0,
    }  # fmt: skip


def test_refused_submissions_are_counted_by_code(http, body):
    """Whatever refuses them; other refusals are none."""
    http.post("/calibrate", json=body | {"budget": 0})
    http.post("/v1/calibrate", json=body | {"base_model": "local:none"})
    http.post("/jobs/job_0/retry")
    http.post("/evaluations", content=b"{")
    http.post("/estimate", json=body | {"budget": 0})
    http.get("/jobs/job_0")
    http.post("/calibrate", json=body)

    samples, name = read(http), "fimlora_submissions_refused_total"

    counted = {
        dict(labels)["code"]: n for (found, labels), n in samples.items() if found == name
    }
    assert set(counted) >= {"validation_failed", "model_not_found", "job_not_found"}
    assert sum(counted.values()) == 4


def test_a_store_that_refuses_writes_shows(http, redis_client):
    """It answers all the same, and no job can be accepted."""
    before = read(http)
    redis_client.config_set("maxmemory", 1)
    try:
        full = read(http)
    finally:
        redis_client.config_set("maxmemory", 0)

    name = "fimlora_store_writable"
    assert [value(samples, name) for samples in (before, full, read(http))] == [1, 0, 1]
    assert value(full, "fimlora_redis_up") == 1


def test_what_workers_count_is_shown(http, store):
    """They have no port of their own."""
    count_work(store, busy_s=1.25, models_loaded=1)
    count_work(store, busy_s=2.0, models_loaded=0)
    enter_worker(store, name="w1")

    samples = read(http)

    assert value(samples, "fimlora_worker_busy_seconds_total") == 3.25
    assert value(samples, "fimlora_models_loaded_total") == 1
    assert 0 <= value(samples, "fimlora_worker_heartbeat_age_seconds") < 20
    assert value(samples, "fimlora_build_info", version=__version__) == 1
    assert value(samples, "fimlora_disk_free_bytes") > 0


def test_the_page_has_every_figure_that_is_shown(http, body):
    """And nothing that is not: dashboards and alerts are written from it."""
    http.post("/calibrate", json=body | {"budget": 0})
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    families = text_string_to_metric_families(http.get("/metrics").text)

    shown = {
        f"{f.name}_total" if f.type == "counter" else f.name
        for f in families
        if f.name.startswith("fimlora_") and not f.name.endswith("_created")
    }
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == shown


def test_requests_are_counted_by_template(http, job_id):
    """However many addresses clients make up, the labels stay few; /v1 is the same route."""
    for path in (f"/jobs/{job_id}", f"/v1/jobs/{job_id}", "/jobs/x", "/nope/1", "/nope/2"):
        http.get(path)
    http.request("BREW", "/nope")
    http.request("PUT", f"/jobs/{job_id}")

    samples, name = read(http), "fimlora_http_request_duration_seconds_count"

    def count(route: str, status: str, method: str = "GET") -> float | None:
        return value(samples, name, method=method, route=route, status=status)

    assert count("/jobs/{id}", "200") == 2
    assert count("/jobs/{id}", "404") == 1
    assert count("/jobs/{id}", "405", "PUT") == 1
    assert count("unmatched", "404") == 2
    assert count("unmatched", "404", "other") == 1
    assert not any(job_id in str(labels) or "nope" in str(labels) for _, labels in samples)


def test_without_redis_the_process_still_tells_about_itself(settings):
    """An alert needs to know that it is Redis that is away."""
    gone = settings.model_copy(update={"redis_url": "unix:///tmp/fimlora-no-such-socket"})
    with TestClient(create_app(gone), raise_server_exceptions=False) as http:
        samples = read(http)

    assert value(samples, "fimlora_redis_up") == 0
    assert value(samples, "fimlora_queue_length") is None
    assert value(samples, "process_open_fds") > 0


def test_no_secret_is_shown(settings, redis_client):
    """Not the token, not the address of Redis."""
    secret = settings.model_copy(update={"hub_token": SecretStr("hf_very_secret")})
    with TestClient(create_app(secret)) as http:
        http.get("/jobs?token=hunter2", headers={"Authorization": "Bearer hunter2"})
        text = http.get("/metrics").text

    for word in ("hf_very", "hunter2", "unix:", json.dumps(str(settings.data_dir))):
        assert word not in text
