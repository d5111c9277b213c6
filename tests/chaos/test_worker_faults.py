"""What becomes of a job whose worker is killed, told to go, or cut off from its server.

Another worker takes a lost job once its lease has run out. That is slow to wait for, so
meanwhile the tests that need nothing of it run: those of its end come last.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from redis import Redis

from support.durable import DurableServer, durable
from support.jobs import Jobs
from support.model_folders import make_encoder
from support.valkey import running_valkey
from support.workers import WorkerHandle, running_worker, wait_dead

__all__ = ["durable"]  # a fixture
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker_faults")]
OUTAGE_S = 5.0


@dataclass(frozen=True)
class Abandoned:
    """A running job whose worker was killed, and the worker that is there to take it."""

    job_id: str
    killed_at_ms: int
    second: WorkerHandle


@pytest.fixture(scope="module")
def abandoned(
    server: str, jobs: Jobs, worker: WorkerHandle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Abandoned]:
    """Kill the first worker, whose child dies with it."""
    job_id = jobs.submit_long()
    jobs.wait_running(job_id)
    child = worker.child_pid
    log = tmp_path_factory.mktemp("second") / "log"
    with running_worker(server, jobs.data_dir, log) as second:
        worker.signal(signal.SIGKILL)
        killed_at_ms = jobs.store.now_ms()
        wait_dead(child, timeout_s=2)
        yield Abandoned(job_id, killed_at_ms, second)


def test_a_job_survives_a_restart_of_the_server(abandoned, durable: DurableServer, tmp_path):
    """Parent and child wait for the server to come back; no attempt is lost."""
    make_encoder(tmp_path / "data" / "models" / "tiny")
    with Redis.from_url(durable.url) as redis:
        jobs = Jobs(redis, tmp_path / "data")
        with running_worker(durable.url, jobs.data_dir, tmp_path / "log") as worker:
            job_id = jobs.submit_long(n_batches=300)
            jobs.wait_running(job_id)
            child = worker.child_pid

            durable.kill()
            time.sleep(OUTAGE_S)
            durable.start()
            record = jobs.wait_final(job_id)

            assert (record.status, record.attempt) == ("succeeded", 1)
            assert worker.child_pid == child
            assert jobs.wait_final(jobs.submit()).status == "succeeded"


def test_another_worker_takes_the_job_of_one_that_was_killed(jobs: Jobs, abandoned: Abandoned):
    """Within 30 s, as a second attempt that counts as a failure."""
    record = jobs.wait(abandoned.job_id, lambda r: r.attempt == 2 and r.status == "running")
    taken_at_ms = next(
        int(event.id.partition("-")[0])  # the server's clock, as the other time
        for event in jobs.store.events(abandoned.job_id)
        if (event.attempt, event.status) == (2, "running")
    )

    assert 0 < taken_at_ms - abandoned.killed_at_ms < 30_000
    assert record.failures == 1


def test_a_worker_that_is_terminated_hands_its_job_on(jobs: Jobs, abandoned: Abandoned):
    """To the front of the queue, uncounted, and it leaves in peace."""
    jobs.wait_running(abandoned.job_id, attempt=2)
    waiting = jobs.submit()

    abandoned.second.signal(signal.SIGTERM)
    assert abandoned.second.wait(timeout_s=10) == 0

    record = jobs.get(abandoned.job_id)
    assert (record.status, record.attempt, record.failures) == ("queued", 3, 1)
    assert [(e.reason, e.counted) for e in record.earlier_attempts] == [
        ("worker_lost", True), ("handed_over", False),
    ]  # fmt: skip
    assert not abandoned.second.has_logged("AbandonedJobError")  # its job went on
    queue = jobs.redis.lrange("rq:queue:fimlora", 0, -1)
    assert queue == [f"{abandoned.job_id}-3".encode(), f"{waiting}-1".encode()]


def test_a_worker_that_is_terminated_while_idle_leaves_at_once(jobs: Jobs, tmp_path):
    """Nothing holds it, and its child goes too."""
    with (
        running_valkey() as url,
        running_worker(url, jobs.data_dir, tmp_path / "log") as idle,
    ):
        deadline = time.monotonic() + 20
        while not idle.has_logged("worker.ready"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        [child] = idle.child_pids()
        os.kill(idle.process.pid, signal.SIGTERM)

        assert idle.wait(timeout_s=15) == 0
        wait_dead(child)
