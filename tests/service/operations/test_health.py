"""Liveness, readiness, version."""

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
