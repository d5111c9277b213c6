"""Liveness, readiness, version."""

from collections.abc import Iterator

import pytest

from fimlora_contract import __version__
from fimlora_service.app import create_app
from support.presence import enter_worker
from support.testclient import TestClient


def test_the_process_is_alive(http):
    """Without asking any dependency."""
    assert http.get("/healthz").json()["status"] == "ok"


def test_the_version_is_told(http):
    """It is part of every cache key."""
    assert http.get("/version").json() == {"fimlora": __version__, "api": "v1"}


def test_without_workers_it_is_degraded_but_ready(http):
    """Jobs are accepted and wait."""
    answer = http.get("/readyz")

    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert "no live worker" in answer.json()["checks"]["workers"]


def test_with_a_live_worker_it_is_ready(http, store):
    """A worker that keeps its entry fresh counts, and one that has left does not."""
    presence = enter_worker(store)

    assert http.get("/readyz").json()["status"] == "ok"
    presence.leave()
    assert http.get("/readyz").json()["status"] == "degraded"


def test_a_missing_redis_is_named(settings):
    """503, fast, with a hint when to come again."""
    gone = settings.model_copy(update={"redis_url": "unix:///tmp/fimlora-no-such-socket"})
    with TestClient(create_app(gone), raise_server_exceptions=False) as http:
        answer = http.get("/readyz")

    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert answer.json()["checks"]["redis"].startswith("does not answer")
    assert "Retry-After" in answer.headers


def test_an_artefact_folder_that_cannot_be_written_is_named(http, data_dir):
    """503: results could not be kept."""
    (data_dir / "artifacts").rmdir()

    answer = http.get("/readyz")

    assert answer.status_code == 503
    assert answer.json()["checks"]["artifacts"].startswith("cannot be written")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/version", "/models", "/datasets"])
def test_the_versioned_paths_answer_the_same(http, path):
    """Every route is also under /v1."""
    assert http.get(f"/v1{path}").json() == http.get(path).json()


@pytest.fixture
def full_memory(redis_client) -> Iterator[None]:
    """The store has no memory left for anything new."""
    redis_client.config_set("maxmemory", "1mb")
    yield
    redis_client.config_set("maxmemory", "0")


def test_a_store_that_refuses_writes_is_named_and_nothing_is_accepted(http, body, full_memory):
    """A ping would be answered; a job could not be put on record."""
    health = http.get("/readyz")
    refused = http.post("/calibrate", json=body, headers={"Idempotency-Key": "k"})

    assert (health.status_code, health.json()["checks"]["redis"]) == (
        503, "refuses writes: OOM",
    )  # fmt: skip
    assert (refused.status_code, refused.json()["code"]) == (503, "redis_unavailable")
    assert refused.json()["detail"] == "Redis refuses writes for now"
    assert "Retry-After" in refused.headers


def test_what_was_refused_is_accepted_under_the_same_key(http, body, redis_client):
    """Once there is memory again, as if it had never been asked before."""
    redis_client.config_set("maxmemory", "1mb")
    refused = http.post("/calibrate", json=body, headers={"Idempotency-Key": "k"})
    redis_client.config_set("maxmemory", "0")
    accepted = http.post("/calibrate", json=body, headers={"Idempotency-Key": "k"})
    repeated = http.post("/calibrate", json=body, headers={"Idempotency-Key": "k"})

    assert refused.status_code == 503
    assert accepted.status_code == repeated.status_code == 202
    assert accepted.json()["id"] == repeated.json()["id"]


def test_below_the_floor_of_free_space_nothing_is_accepted(settings, body):
    """Neither a job nor an upload, and whoever asks is told how much is lacking."""
    floor = 1 << 60
    short = settings.model_copy(update={"min_free_bytes": floor})
    with TestClient(create_app(short), raise_server_exceptions=False) as http:
        health = http.get("/readyz")
        refused = [
            http.post("/calibrate", json=body),
            http.post(
                "/datasets", content=b"{}", headers={"content-type": "application/jsonl"}
            ),
        ]
        estimate = http.post("/estimate", json=body)

    assert health.status_code == 503
    assert f"{floor} must stay free" in health.json()["checks"]["disk"]
    assert [(r.status_code, r.json()["code"]) for r in refused] == [(507, "disk_full")] * 2
    assert estimate.status_code == 200


def test_readiness_says_what_is_promised(http):
    """This server keeps no append-only file, and so nothing can be."""
    promise = http.get("/readyz").json()["durability"]

    assert promise == ("not promised: the server keeps no append-only file (appendonly no)")
