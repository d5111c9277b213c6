"""A real worker over a real Valkey; tests of one file share them, child process included."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from support.jobs import Jobs
from support.model_folders import make_encoder
from support.valkey import running_valkey
from support.workers import WorkerHandle, running_worker


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a server that only this file's tests use."""
    with running_valkey() as url:
        yield url


@pytest.fixture(scope="module")
def jobs(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    make_encoder(data_dir / "models" / "tiny")
    with Redis.from_url(server) as redis:
        yield Jobs(redis, data_dir)


@pytest.fixture(scope="module")
def worker(
    server: str, jobs: Jobs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerHandle]:
    log = tmp_path_factory.mktemp("log") / "worker.log"
    with running_worker(server, jobs.data_dir, log) as handle:
        yield handle
