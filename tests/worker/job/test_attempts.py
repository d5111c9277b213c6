"""Fencing: what an attempt may still do when somebody else has moved the job."""

import threading

import pytest
from rq.utils import import_attribute

from fimlora_contract.jobs import Progress, Stage
from fimlora_jobs.attempts import RUN_ATTEMPT
from fimlora_worker.errors import CancelRequested, DeadlinePassed, ShutdownRequested
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.tasks import run_attempt
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.jobs import Jobs


def during_measurement(jobs: Jobs, job_id: str, act) -> threading.Thread:
    """Do something to a job as soon as its batches are being measured."""

    def watch() -> None:
        jobs.wait_running(job_id)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_the_task_has_a_name_that_stays():
    """Services and workers of two versions may share a queue; an unknown name costs attempts."""
    assert RUN_ATTEMPT == "fimlora_worker.tasks.run_calibration"
    assert import_attribute(RUN_ATTEMPT) is run_attempt


def test_an_overtaken_attempt_writes_nothing(jobs: Jobs, run_queue):
    """A worker that was taken for dead leaves without artefacts and without a word."""
    job_id = jobs.submit_long()
    thread = during_measurement(jobs, job_id, lambda: jobs.store.requeue(job_id, 1))

    assert run_attempt(job_id, 1) == "superseded"
    thread.join()
    record = jobs.get(job_id)
    assert (record.status, record.attempt) == ("queued", 2)
    assert list((jobs.data_dir / "artifacts").iterdir()) == []


def test_a_cancel_request_is_obeyed_between_two_batches(jobs: Jobs, run_queue):
    """The record says canceled, RQ's job ends well, the model is as it was."""
    job_id = jobs.submit_long()
    thread = during_measurement(jobs, job_id, lambda: jobs.store.request_cancel(job_id))

    assert run_attempt(job_id, 1) == "canceled"
    thread.join()
    assert jobs.get(job_id).status == "canceled"
    # The interrupted model is still loaded, and sound.
    second = jobs.submit()
    assert run_attempt(second, 1) == "succeeded"


def test_a_shutdown_gives_the_attempt_back_uncounted(jobs: Jobs, run_queue):
    """It goes to the front, ahead of what waited longer than its next attempt."""
    job_id = jobs.submit_long()
    other = jobs.submit()
    process = process_for(Settings())
    process.is_draining = True

    assert run_attempt(job_id, 1) == "handed over"
    process.is_draining = False
    record = jobs.get(job_id)
    assert (record.status, record.attempt, record.failures) == ("queued", 2, 0)
    waiting = [name.decode() for name in jobs.redis.lrange("rq:queue:fimlora", 0, -1)]
    assert waiting.index(f"{job_id}-2") < waiting.index(f"{other}-1")


def test_a_job_out_of_time_fails_with_timeout(jobs: Jobs, run_queue, monkeypatch):
    """Our own deadline, read between batches, cannot be swallowed by a library."""
    monkeypatch.setenv("FIMLORA_JOB_DEADLINE_S", "0.2")
    job_id = jobs.submit_long()

    with pytest.raises(DeadlinePassed):
        run_attempt(job_id, 1)

    error = jobs.get(job_id).json_field("error")
    assert error["code"] == "timeout"
    assert "of 0.2 s" in error["detail"]


class TestReporter:
    """Progress and interruptions on a clock that tests move."""

    @pytest.fixture
    def state(self):
        return {"now": 0.0, "draining": False, "alive": 0}

    @pytest.fixture
    def reporter(self, jobs: Jobs, state):
        job_id = jobs.submit()
        jobs.store.start(job_id, 1, worker="w")

        def on_alive() -> None:
            state["alive"] += 1

        return Reporter(
            jobs.store, job_id, 1,
            is_draining=lambda: state["draining"], on_alive=on_alive,
            deadline_s=100, clock=lambda: state["now"],
        )  # fmt: skip

    def progress(self, jobs, reporter) -> Progress:
        return Progress(**jobs.get(reporter.job_id).json_field("progress"))

    def test_time_left_is_that_of_the_batches_to_come(self, jobs, reporter, state):
        """Two batches took six seconds: three more take nine."""
        reporter.enter(Stage.CALIBRATING, n_batches=5)
        state["now"] = 6.0
        reporter.on_batch(2, 5)

        progress = self.progress(jobs, reporter)
        assert (progress.batch, progress.n_batches, progress.seconds_left) == (2, 5, 9.0)

    def test_batches_of_an_earlier_attempt_are_told_and_not_timed(self, jobs, reporter, state):
        """Six were done before; two more took four seconds, so the last two take four."""
        reporter.enter(Stage.CALIBRATING, n_batches=10)
        state["now"] = 5.0
        reporter.on_resume(6, 10)
        state["now"] = 9.0
        reporter.on_batch(8, 10)

        progress = self.progress(jobs, reporter)
        assert (progress.batch, progress.seconds_left, progress.resumed_from) == (8, 4.0, 6)

    def test_very_fast_batches_are_not_all_reported_but_the_last_is(
        self, jobs, reporter, state
    ):
        """Ten batches in ten milliseconds are two reports."""
        reporter.enter(Stage.CALIBRATING, n_batches=10)
        for n in range(1, 11):
            state["now"] += 0.001
            reporter.on_batch(n, 10)

        assert self.progress(jobs, reporter).batch == 10
        assert state["alive"] == 2

    def test_a_long_stage_shows_life_and_can_be_ended(self, jobs, reporter, state):
        """Between rows, once a second however many there are, with the progress that was."""
        reporter.enter(Stage.LOADING)
        for _ in range(2_500):
            state["now"] += 0.001
            reporter.keep_alive()

        assert state["alive"] == 3
        assert self.progress(jobs, reporter).stage == Stage.LOADING
        state["now"] += 1.0
        jobs.store.request_cancel(reporter.job_id)
        with pytest.raises(CancelRequested):
            reporter.keep_alive()
        state["draining"] = True
        with pytest.raises(ShutdownRequested):
            reporter.keep_alive()

    def test_each_interruption_has_its_own_exception(self, jobs, reporter, state):
        """None of them is an Exception, so no library can swallow one."""
        state["draining"] = True
        with pytest.raises(ShutdownRequested):
            reporter.on_batch(1, 5)
        state.update(draining=False, now=101.0)
        with pytest.raises(DeadlinePassed, match="101 s of 100 s"):
            reporter.on_batch(1, 5)
        state["now"] = 1.0
        reporter.due_in_s = 1.0
        with pytest.raises(DeadlinePassed, match="deadline_s had passed"):
            reporter.on_batch(1, 5)
        reporter.due_in_s = 1.1
        jobs.store.request_cancel(reporter.job_id)
        with pytest.raises(CancelRequested):
            reporter.on_batch(1, 5)
        assert not issubclass(CancelRequested, Exception)


def test_what_the_worker_s_operator_does_not_allow_is_not_run(jobs, run_queue, monkeypatch):
    """A service with other lists, or none, may write to the same queue."""
    job_id = jobs.submit()
    monkeypatch.setenv("FIMLORA_ALLOWED_MODELS", "org/*")
    run_queue()

    error = jobs.get(job_id).to_job().error
    assert (error.code, error.retryable) == ("model_not_allowed", False)
    assert "'local:tiny'; allowed are org/*" in error.detail
