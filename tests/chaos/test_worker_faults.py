"""What becomes of a job whose whole worker is killed, or told to go."""

import os
import signal
import time

import pytest

from support.jobs import Jobs
from support.workers import WorkerHandle, running_worker, wait_dead

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker_faults")]


def test_a_lost_worker_and_an_orderly_one_hand_their_job_on(
    server: str, jobs: Jobs, worker: WorkerHandle, tmp_path
):
    """One story, since waiting for a lease is slow.

    The first worker is killed: its child dies with it and another worker takes the job
    within 30 s, as a second attempt. That one is terminated: it gives the job back to the
    front of the queue, uncounted, and leaves in peace.
    """
    job_id = jobs.submit_long()
    jobs.wait_running(job_id)
    child = worker.child_pid
    with running_worker(server, jobs.data_dir, tmp_path / "log") as second:
        worker.signal(signal.SIGKILL)
        killed_at = time.monotonic()
        wait_dead(child, timeout_s=2)
        record = jobs.wait(job_id, lambda r: r.attempt == 2 and r.status == "running")

        assert time.monotonic() - killed_at < 30
        assert record.failures == 1

        waiting = jobs.submit()
        jobs.wait_running(job_id, attempt=2)
        second.signal(signal.SIGTERM)
        assert second.wait(timeout_s=10) == 0

    record = jobs.get(job_id)
    assert (record.status, record.attempt, record.failures) == ("queued", 3, 1)
    queue = jobs.redis.lrange("rq:queue:fimlora", 0, -1)
    assert queue == [f"{job_id}-3".encode(), f"{waiting}-1".encode()]


def test_a_worker_that_is_terminated_while_idle_leaves_at_once(server, jobs, tmp_path):
    """Nothing holds it, and its child goes too."""
    jobs.redis.flushall()
    with running_worker(server, jobs.data_dir, tmp_path / "log") as idle:
        deadline = time.monotonic() + 20
        while not idle.has_logged("worker.ready"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        [child] = idle.child_pids()
        os.kill(idle.process.pid, signal.SIGTERM)

        assert idle.wait(timeout_s=15) == 0
        wait_dead(child)
