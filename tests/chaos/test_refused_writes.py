"""A worker that is started, or told to go, while the store refuses writes.

One worker for both. What becomes of its jobs meanwhile, the matrix of faults shows.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from fimlora_jobs.workers import WorkerRegistry
from support.jobs import Jobs
from support.model_folders import make_encoder
from support.refusing import ProductionServer, running_production_server
from support.workers import WorkerHandle, running_worker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("refused_writes")]


@pytest.fixture(scope="module")
def full_server() -> Iterator[ProductionServer]:
    with running_production_server() as running:
        yield running


@pytest.fixture(scope="module")
def waiting_jobs(
    full_server: ProductionServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Jobs]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    make_encoder(data_dir / "models" / "tiny")
    with Redis.from_url(full_server.url) as redis:
        yield Jobs(redis, data_dir)


@pytest.fixture(scope="module")
def patient_worker(
    full_server: ProductionServer,
    waiting_jobs: Jobs,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[WorkerHandle]:
    """A worker that is started on a store whose disk is full."""
    log = tmp_path_factory.mktemp("log") / "worker.log"
    full_server.fill_disk()
    with running_worker(full_server.url, waiting_jobs.data_dir, log) as handle:
        wait_until(
            lambda: handle.has_logged("store.away") or handle.has_logged("store.unreachable")
        )
        yield handle


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until_writable(server: ProductionServer) -> None:
    with Redis.from_url(server.url) as redis:
        wait_until(lambda: redis.info("persistence")["aof_last_write_status"] == "ok")


def test_a_worker_that_is_started_on_a_full_store_waits_for_it(
    full_server: ProductionServer, waiting_jobs: Jobs, patient_worker: WorkerHandle
):
    """It registers and takes jobs as soon as it can."""
    time.sleep(1)
    assert patient_worker.process.poll() is None
    assert not patient_worker.has_logged("worker.ready")

    full_server.free_disk()
    wait_until_writable(full_server)
    record = waiting_jobs.wait_final(waiting_jobs.submit(), timeout_s=120)

    assert (record.status, record.attempt) == ("succeeded", 1)


def test_a_worker_leaves_although_the_store_is_full(
    waiting_jobs: Jobs, patient_worker: WorkerHandle
):
    """Told to go while it is idle, it does not wait for a store that may never come back."""
    [child] = patient_worker.child_pids()
    registry = WorkerRegistry(waiting_jobs.store)
    wait_until(lambda: [worker.state for worker in registry.living()] == ["idle"])
    time.sleep(1)  # RQ has a word to write after that
    waiting_jobs.redis.config_set("maxmemory", "1mb")
    time.sleep(0.5)

    patient_worker.signal(signal.SIGTERM)

    assert patient_worker.wait(timeout_s=60) is not None
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
