"""The real app on a real Valkey, with one small registered model; workers are played by tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from redis import Redis

from fimlora_jobs.store import JobStore
from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from support.service import ROWS, commit_result, make_model
from support.testclient import TestClient


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder with the model ``tiny``."""
    folder = tmp_path / "data"
    make_model(folder / "models" / "tiny")
    return folder


@pytest.fixture
def settings(data_dir: Path, valkey_url: str) -> Settings:
    return Settings(
        redis_url=valkey_url,
        data_dir=data_dir,
        hub_endpoint="http://127.0.0.1:9",  # nothing listens there
        hub_token=None,
        poll_interval_s=0.02,
        keep_alive_s=0.1,
        reaper_interval_s=60,
        max_body_bytes=200_000,
        max_upload_bytes=400_000,
    )


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def http(app: FastAPI) -> Iterator[TestClient]:
    """A client of the running app; a fault of the app is an answer, not an exception."""
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def store(redis_client: Redis) -> JobStore:
    """The same store as the app's: a test plays the worker through it."""
    return JobStore(redis_client)


@pytest.fixture
def body() -> dict[str, Any]:
    """A request that is accepted."""
    return {
        "base_model": "local:tiny",
        "dataset": {"source": "inline", "rows": ROWS},
        "budget": 8,
    }


@pytest.fixture
def job_id(http: TestClient, body: dict[str, Any]) -> str:
    """A queued job."""
    answer = http.post("/calibrate", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def succeed(store: JobStore, data_dir: Path) -> Callable[[str], dict[str, Any]]:
    """Play a worker that runs a queued job to its good end."""

    def run(job_id: str) -> dict[str, Any]:
        store.start(job_id, 1, worker="test")
        result = commit_result(data_dir)
        store.succeed(job_id, 1, result)
        store.remember_result(store.get(job_id).fields["request_digest"], job_id)
        return result

    return run
