"""What becomes of workers and jobs while the store refuses writes: they wait, and go on.

One worker for all tests, in order: it is started while the store is full, and ends while it is.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from support.jobs import Jobs
from support.model_folders import make_encoder
from support.refusing import ProductionServer, running_production_server
from support.workers import WorkerHandle, running_worker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("refused_writes")]
OUTAGE_S = 4.0


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


def full_memory(server: ProductionServer, redis: Redis) -> Callable[[], object]:
    redis.config_set("maxmemory", "1mb")
    return lambda: redis.config_set("maxmemory", "0")


def full_disk(server: ProductionServer, redis: Redis) -> Callable[[], object]:
    server.fill_disk()
    return server.free_disk


@pytest.mark.parametrize("fill", [full_memory, full_disk])
def test_a_running_job_waits_for_a_store_that_is_full(
    full_server: ProductionServer, waiting_jobs: Jobs, patient_worker: WorkerHandle, fill
):
    """Neither parent nor child dies, no attempt counts, and the next job runs, too."""
    job_id = waiting_jobs.submit_long(n_batches=300)
    waiting_jobs.wait_running(job_id)
    child = patient_worker.child_pid

    put_right = fill(full_server, waiting_jobs.redis)
    time.sleep(OUTAGE_S)
    put_right()
    record = waiting_jobs.wait_final(job_id, timeout_s=120)

    assert (record.status, record.attempt, record.failures) == ("succeeded", 1, 0)
    assert patient_worker.child_pid == child
    assert waiting_jobs.wait_final(waiting_jobs.submit()).status == "succeeded"


def test_a_worker_leaves_although_the_store_is_full(
    waiting_jobs: Jobs, patient_worker: WorkerHandle
):
    """Told to go while it is idle, it does not wait for a store that may never come back."""
    [child] = patient_worker.child_pids()
    waiting_jobs.redis.config_set("maxmemory", "1mb")
    time.sleep(0.5)

    patient_worker.signal(signal.SIGTERM)

    assert patient_worker.wait(timeout_s=60) is not None
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
