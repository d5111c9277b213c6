"""The task that RQ runs, by its dotted name: one attempt of one job, and its end on record."""

import logging
import time

from fimlora_contract.jobs import JobStatus, Stage
from fimlora_jobs.counters import count_work
from fimlora_jobs.logs import log_context
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.reaper import give_up
from fimlora_jobs.record import JobRecord
from fimlora_jobs.results.store import StorageUnavailable
from fimlora_jobs.store import StaleAttempt
from fimlora_worker.errors import (
    CancelRequested,
    DeadlinePassed,
    MakesRoom,
    ShutdownRequested,
)
from fimlora_worker.job.failures import is_broken_device, job_error
from fimlora_worker.job.kinds import carry_out, leave
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.work_folders import remove_progress, work_folder
from fimlora_worker.job.worker_process import WorkerProcess, process_for
from fimlora_worker.settings import Settings

log = logging.getLogger(__name__)


def run_attempt(job_id: str, attempt: int) -> str:
    """Run one attempt; the answer, a word for the operator, is RQ's result.

    Raises:
        Exception: What ended the attempt, after it was put on record, so that RQ marks
            its own job as failed and logs the traceback.
    """
    with log_context(job_id=job_id, attempt=attempt):
        return _start(job_id, attempt)


def _start(job_id: str, attempt: int) -> str:
    process = process_for(Settings())
    try:
        record = process.store.start(job_id, attempt, worker=process.name)
    except (StaleAttempt, JobMissing) as reason:
        log.info("attempt.refused", extra={"reason": str(reason)})
        return "refused"
    with log_context(request_id=record.request_id, tenant=record.owner):
        log.info("attempt.started")
        reporter = Reporter(
            process.store,
            job_id,
            attempt,
            is_draining=lambda: process.is_draining,
            on_alive=process.on_alive,
            deadline_s=process.settings.job_deadline_s,
            due_in_s=_due_in_s(record, process),
        )
        began, n_loads = time.monotonic(), process.models.n_loads
        try:
            end = _attempt(record, process, reporter)
        finally:
            busy_s = time.monotonic() - began
            loaded = process.models.n_loads - n_loads
            count_work(process.store, busy_s=busy_s, models_loaded=loaded)
        log.info("attempt.ended", extra={"end": end, "busy_s": round(busy_s, 3)})
    return end


def _attempt(record: JobRecord, process: WorkerProcess, reporter: Reporter) -> str:
    """Run the attempt and put its end on record, whatever it is; the answer names it."""
    job_id, attempt = record.id, record.attempt
    try:
        _run(record, process, reporter)
    except StaleAttempt as reason:
        log.warning("attempt.stale", extra={"reason": str(reason)})
        return "superseded"
    except CancelRequested:
        process.store.confirm_cancel(job_id, attempt)
        return "canceled"
    except ShutdownRequested:
        give_up(process.store, process.transport, job_id, attempt, counted=False)
        return "handed over"
    except MakesRoom:
        _make_room(record, process)
        return "made room"
    except StorageUnavailable as error:
        log.exception("attempt.storage_unavailable")
        away = job_error(error, data_dir=process.settings.data_dir)
        give_up(process.store, process.transport, job_id, attempt, error=away)
        return "given up"
    except (Exception, DeadlinePassed) as error:
        _fail(process, job_id, attempt, error)
        raise
    return "succeeded"


def _make_room(record: JobRecord, process: WorkerProcess) -> None:
    """Queue the next attempt behind all others of its rank."""
    store, transport = process.store, process.transport
    given = give_up(store, transport, record.id, record.attempt, counted=False, at_front=False)
    if record.is_urgent and given.status is JobStatus.QUEUED:
        transport.promote(record.id, given.attempt)


def _due_in_s(record: JobRecord, process: WorkerProcess) -> float | None:
    due_ms = record.deadline_at_ms
    return None if due_ms is None else (due_ms - process.store.now_ms()) / 1000


def _run(record: JobRecord, process: WorkerProcess, reporter: Reporter) -> None:
    reporter.enter(Stage.RESOLVING)
    process.settings.allowed.check_request(record.request)  # it may come from another service
    process.wait_for_imports()
    with work_folder(process.settings.tmp_dir, reporter.rq_id) as folder:
        result = carry_out(record, process, reporter, folder)
    process.store.succeed(record.id, record.attempt, result)
    remove_progress(process.settings.tmp_dir, record.id)
    leave(record, process)


def _fail(process: WorkerProcess, job_id: str, attempt: int, error: BaseException) -> None:
    process.must_retire |= is_broken_device(error)
    reported = job_error(error, data_dir=process.settings.data_dir)
    log.error("attempt.failed", extra={"code": reported.code})
    try:
        process.store.fail(job_id, attempt, reported)
    except StaleAttempt as reason:
        log.warning("attempt.stale", extra={"reason": str(reason)})
