"""The task that RQ runs, by its dotted name: one attempt of one job, and its end on record."""

import logging
import time
from contextlib import suppress
from typing import Any

from fimlora_contract.jobs import AttemptEnd, JobError, JobStatus, Stage
from fimlora_jobs.counters import count_work
from fimlora_jobs.logs import log_context
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.reaper import give_up
from fimlora_jobs.record import JobRecord
from fimlora_jobs.results.kept_records import KeptRecords
from fimlora_jobs.results.store import StorageUnavailable
from fimlora_jobs.store import StaleAttempt
from fimlora_jobs.telemetry import AttemptTrace
from fimlora_worker.errors import (
    CancelRequested,
    DeadlinePassed,
    JobRefused,
    MakesRoom,
    ShutdownRequested,
)
from fimlora_worker.job.commit import keep_record
from fimlora_worker.job.failures import (
    describe_away,
    is_broken_device,
    is_storage_away,
    job_error,
)
from fimlora_worker.job.kinds import carry_out, leave
from fimlora_worker.job.memory_ladder import check_not_in_vain
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.storage import is_usable, wait_for_storage
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
    with process.tracing.attempt(job_id=job_id, attempt=attempt, worker=process.name) as trace:
        try:
            record = process.store.start(
                job_id, attempt, worker=process.name, traceparent=trace.traceparent
            )
        except (StaleAttempt, JobMissing) as reason:
            log.info("attempt.refused", extra={"reason": str(reason)})
            trace.note(end="refused")
            return "refused"
        trace.link(record.traceparents)
        trace.note(kind=record.kind, request_id=record.request_id)
        with log_context(request_id=record.request_id, tenant=record.owner, trace_id=trace.id):
            end = _started(record, process, trace)
        trace.note(end=end)
    return end


def _started(record: JobRecord, process: WorkerProcess, trace: AttemptTrace) -> str:
    log.info("attempt.started")
    reporter = Reporter(
        process.store,
        record.id,
        record.attempt,
        is_draining=lambda: process.is_draining,
        on_alive=process.on_alive,
        deadline_s=process.settings.job_deadline_s,
        due_in_s=_due_in_s(record, process),
        trace=trace,
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
        _hand_on(record, process, AttemptEnd.HANDED_OVER)
        return "handed over"
    except MakesRoom:
        _hand_on(record, process, AttemptEnd.MADE_ROOM)
        return "made room"
    except (Exception, DeadlinePassed) as error:
        if is_storage_away(error):
            log.warning("attempt.storage_unavailable", exc_info=True)
            return _give_back(record, process, error)
        _fail(process, job_id, attempt, error)
        raise
    return "succeeded"


def _give_back(record: JobRecord, process: WorkerProcess, error: BaseException) -> str:
    """Let the job try again, unless it is only this job that storage refuses, again and again."""
    reason, away = (
        AttemptEnd.STORAGE_UNAVAILABLE,
        job_error(error, data_dir=process.settings.data_dir),
    )
    is_refused = isinstance(error, JobRefused)
    status = _hand_on(record, process, reason, error=away, is_refused=is_refused)
    if status is JobStatus.FAILED:
        log.error("attempt.failed", extra={"code": away.code})
        return "refused for good"
    return "given back"


def _hand_on(
    record: JobRecord,
    process: WorkerProcess,
    reason: AttemptEnd,
    *,
    error: JobError | None = None,
    is_refused: bool = False,
) -> JobStatus:
    """Queue the next attempt and count none: in front, or behind all others of its rank."""
    store, transport = process.store, process.transport
    at_front = reason is AttemptEnd.HANDED_OVER
    given = give_up(
        store,
        transport,
        record.id,
        record.attempt,
        counted=False,
        reason=reason,
        error=error,
        is_refused=is_refused,
        at_front=at_front,
    )
    if record.is_urgent and not at_front and given.status is JobStatus.QUEUED:
        transport.promote(record.id, given.attempt)
    return given.status


def _due_in_s(record: JobRecord, process: WorkerProcess) -> float | None:
    due_ms = record.deadline_at_ms
    return None if due_ms is None else (due_ms - process.store.now_ms()) / 1000


def _run(record: JobRecord, process: WorkerProcess, reporter: Reporter) -> None:
    reporter.enter(Stage.RESOLVING)
    process.settings.allowed.check_request(record.request)  # it may come from another service
    check_not_in_vain(record.memory_kills)
    process.wait_for_imports()
    try:
        with work_folder(process.settings.tmp_dir, reporter.rq_id) as folder:
            result = carry_out(record, process, reporter, folder)
        finished_ms = keep_record(record, result, process, reporter)
    except Exception as error:
        if is_storage_away(error):  # the next attempt should find it back
            _wait_for_storage(record, process, reporter, error)
        raise
    _succeed(record, process, result, finished_ms)
    remove_progress(process.settings.tmp_dir, record.id)
    leave(record, process)


def _succeed(
    record: JobRecord, process: WorkerProcess, result: dict[str, Any], finished_ms: int
) -> None:
    """Put the result on record; what was kept of an attempt that comes too late is taken back."""
    try:
        process.store.succeed(record.id, record.attempt, result, finished_ms=finished_ms)
    except (StaleAttempt, JobMissing):
        with suppress(StorageUnavailable, OSError):
            KeptRecords(process.artifacts.notes).withdraw(record.id, record.attempt)
        raise


def _wait_for_storage(
    record: JobRecord, process: WorkerProcess, reporter: Reporter, error: Exception
) -> None:
    """Wait until the next attempt may do better.

    Raises:
        JobRefused: The storage works, so that waiting may not be enough.
    """

    def works() -> bool:
        return is_usable(process.settings.tmp_dir, process.artifacts)

    worked_at_once = works()
    reason = describe_away(error, data_dir=process.settings.data_dir)
    ends = [ended.reason for ended in record.earlier_attempts]
    wait_for_storage(
        n_before=ends.count(AttemptEnd.STORAGE_UNAVAILABLE),
        is_usable=works,
        on_wait=lambda: reporter.wait_for(reason),
    )
    if worked_at_once:
        raise JobRefused(f"the storage works, but not for this job: {error}") from error


def _fail(process: WorkerProcess, job_id: str, attempt: int, error: BaseException) -> None:
    process.must_retire |= is_broken_device(error)
    reported = job_error(error, data_dir=process.settings.data_dir)
    log.error("attempt.failed", extra={"code": reported.code})
    try:
        process.store.fail(job_id, attempt, reported)
    except StaleAttempt as reason:
        log.warning("attempt.stale", extra={"reason": str(reason)})
