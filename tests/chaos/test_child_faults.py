"""What becomes of a job whose child process is killed, stopped or told to cancel.

All tests share one worker: each leaves it idle and sound for the next.
"""

import os
import signal
import time
from pathlib import Path

import pytest
from rq.command import send_kill_horse_command, send_stop_job_command
from rq.worker import Worker

from fimlora_jobs.attempts import rq_job_id
from fimlora_jobs.workers import WorkerRegistry
from support.jobs import Jobs
from support.workers import WorkerHandle, wait_dead

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("child_faults")]


def test_a_killed_child_is_replaced_and_its_job_goes_on(jobs: Jobs, worker: WorkerHandle):
    """The attempt counts as lost; the next one starts at once, from what was saved.

    It ends with the result of a job that nothing happened to, and nothing of it is left. The sums
    are those of the head that its first attempt had fitted, and the second one fits the same.
    """
    job_id = jobs.submit_long(n_batches=200, n_head_rows=40)
    jobs.wait(job_id, lambda r: ((r.json_field("progress") or {}).get("batch") or 0) > 50)
    killed = worker.child_pid

    os.kill(killed, signal.SIGKILL)
    lost_at = time.monotonic()
    jobs.wait(job_id, lambda r: r.attempt == 2 and r.status == "running")
    waited_s = time.monotonic() - lost_at
    record = jobs.wait_final(job_id)
    undisturbed = jobs.wait_final(jobs.submit_long(n_batches=200, n_head_rows=40))

    assert (record.status, record.attempt, record.failures) == ("succeeded", 2, 1)
    assert worker.child_pid != killed
    assert waited_s < 10
    steps = [event.progress for event in jobs.store.events(job_id) if event.attempt == 2]
    batches = [step.batch for step in steps if step and step.resumed_from]
    assert batches[0] > 0
    assert batches[0] == next(step.resumed_from for step in steps if step and step.resumed_from)
    assert record.json_field("result")["digest"] == undisturbed.json_field("result")["digest"]
    assert worker.has_logged("attempt.resumed", job_id=job_id, batch=batches[0], n_batches=200)
    assert not list((jobs.data_dir / "tmp").glob(f"{job_id}.*"))


def test_the_parent_never_loads_torch(jobs: Jobs, worker: WorkerHandle):
    """The child has it mapped, the parent that speaks to Redis has not."""
    jobs.wait_final(jobs.submit())

    assert "libtorch" in Path(f"/proc/{worker.child_pid}/maps").read_text()
    assert "libtorch" not in Path(f"/proc/{worker.process.pid}/maps").read_text()


def test_the_second_job_on_a_model_does_not_load_it(jobs: Jobs, worker: WorkerHandle):
    """Everything but measuring takes well under half a second on a warm child."""
    jobs.wait_final(jobs.submit())
    loads = worker.count("model.load")

    started = time.monotonic()
    record = jobs.wait_final(jobs.submit(budget=5))

    assert record.status == "succeeded"
    assert worker.count("model.load") == loads
    assert time.monotonic() - started < 5  # 0.2 s on an idle machine; a load takes longer


def test_a_running_job_is_canceled_between_two_batches(jobs: Jobs, worker: WorkerHandle):
    """The child obeys at once, stays warm and takes the next job."""
    job_id = jobs.submit_long()
    jobs.wait_running(job_id)
    child = worker.child_pid

    jobs.store.request_cancel(job_id)
    record = jobs.wait_final(job_id, timeout_s=5)

    assert record.status == "canceled"
    assert jobs.wait_final(jobs.submit()).status == "succeeded"
    assert worker.child_pid == child


def test_a_worker_tells_what_it_is_busy_with(jobs: Jobs, worker: WorkerHandle):
    """The registry of living workers has the job while it runs."""
    registry = WorkerRegistry(jobs.store)
    job_id = jobs.submit_long()
    jobs.wait_running(job_id)
    [busy] = registry.living()

    jobs.store.request_cancel(job_id)
    jobs.wait_final(job_id)
    deadline = time.monotonic() + 10
    while registry.living()[0].state == "busy" and time.monotonic() < deadline:
        time.sleep(0.02)
    [idle] = registry.living()

    assert (busy.state, busy.job_id) == ("busy", job_id)
    assert (idle.state, idle.job_id, idle.name) == ("idle", None, busy.name)


def test_a_child_that_does_not_obey_a_cancel_is_killed(jobs: Jobs, worker: WorkerHandle):
    """A hanging child is ended after the grace period, and the job is canceled."""
    job_id = jobs.submit_long()
    jobs.wait_running(job_id)
    child = worker.child_pid

    os.kill(child, signal.SIGSTOP)  # as a device that never answers
    jobs.store.request_cancel(job_id)
    record = jobs.wait_final(job_id, timeout_s=30)

    assert record.status == "canceled"
    wait_dead(child)


def test_a_running_job_fails_when_its_deadline_passes(jobs: Jobs, worker: WorkerHandle):
    """Between two batches, with code timeout; the child stays warm."""
    jobs.wait_final(jobs.submit())
    child = worker.child_pid
    job_id = jobs.submit_long(deadline_s=4)

    record = jobs.wait_final(job_id, timeout_s=30)

    assert (record.status, record.json_field("error")["code"]) == ("failed", "timeout")
    assert jobs.wait_final(jobs.submit()).status == "succeeded"
    assert worker.child_pid == child


def test_rqs_own_stop_command_cancels_the_job(jobs: Jobs, worker: WorkerHandle):
    """An operator who stops the RQ job gets a canceled job, not another attempt."""
    job_id = jobs.submit_long()
    jobs.wait_running(job_id)

    send_stop_job_command(jobs.redis, rq_job_id(job_id, 1), serializer="json")
    record = jobs.wait_final(job_id, timeout_s=30)

    assert (record.status, record.attempt) == ("canceled", 1)


def wait_idle(worker: Worker) -> None:
    """Wait for the end of what it does; RQ would remember a job that was seen once."""
    deadline = time.monotonic() + 60  # a busy machine takes its time
    while worker.get_current_executions(refresh=True):
        assert time.monotonic() < deadline, "the worker is still busy"
        time.sleep(0.02)


def test_a_late_stop_hits_neither_parent_nor_idle_child(jobs: Jobs, worker: WorkerHandle):
    """RQ's commands for a job that has ended leave both processes alone."""
    job_id = jobs.submit()
    jobs.wait_final(job_id)
    [listening] = Worker.all(jobs.redis, serializer="json")
    wait_idle(listening)  # the record ends a moment before RQ hears of it
    child = worker.child_pid

    send_stop_job_command(jobs.redis, rq_job_id(job_id, 1), serializer="json")
    send_kill_horse_command(jobs.redis, listening.name)
    time.sleep(0.5)

    assert worker.process.poll() is None
    assert jobs.wait_final(jobs.submit()).status == "succeeded"
    assert worker.child_pid == child


def test_a_job_that_loses_its_worker_three_times_fails(jobs: Jobs, worker: WorkerHandle):
    """The third loss is the last: the error names it and can be retried by the user."""
    job_id = jobs.submit_long()
    for attempt in (1, 2, 3):
        jobs.wait(job_id, lambda r, n=attempt: r.attempt == n and r.status == "running")
        os.kill(worker.child_pid, signal.SIGKILL)
    record = jobs.wait_final(job_id)

    error = record.json_field("error")
    assert (record.status, record.attempt, record.failures) == ("failed", 3, 2)
    assert error == {
        "code": "worker_lost",
        "detail": "the worker's process was ended by SIGKILL",
        "retryable": True,
        "next_step": "Retry the job.",
    }


def test_nothing_is_left_of_attempts_that_died(jobs: Jobs, worker: WorkerHandle):
    """The reaper removes work folders whose attempt is over."""
    deadline = time.monotonic() + 15
    while list((jobs.data_dir / "tmp").glob("job_*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert worker.process.poll() is None
