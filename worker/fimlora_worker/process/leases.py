"""The parent's side of an attempt: hold its lease, notice when nobody wants it any more.

RQ job ids name an attempt (see `fimlora_jobs.attempts`), so they are all this needs. Runs of
evaluations that the child has claimed are held on to with the lease, and given back with it. A
hand has such claims and no lease: nobody has to be told of its end.
"""

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from fimlora_contract.jobs import JobError, JobStatus
from fimlora_jobs.attempts import (
    REAPER_INTERVAL_S,
    is_hand,
    job_id_of,
    parse_rq_job_id,
)
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.reaper import Reaped, Transport, give_up, requeue_orphans
from fimlora_jobs.runs import Runs
from fimlora_jobs.store import JobStore, StaleAttempt
from fimlora_worker.logs import rq_fields
from fimlora_worker.process.memory_events import OomKills, count_oom_kills

log = logging.getLogger(__name__)
FOR_MEMORY = (
    "the system ended the worker's process for want of memory; shorter examples "
    "(calibration.max_length), a smaller model or a worker with more memory would do"
)


class Leases:
    """Holds the lease of the attempt a worker is running.

    Args:
        store: The job records.
        transport: Where the next attempt is queued.
        grace_s: Time a job gets to end by itself once nobody wants it.
        clock: Seconds of a monotonic clock.
        count_kills: See `count_oom_kills`.
    """

    def __init__(
        self,
        store: JobStore,
        transport: Transport,
        *,
        grace_s: float,
        clock: Callable[[], float] = time.monotonic,
        count_kills: Callable[[], OomKills] = count_oom_kills,
    ) -> None:
        self._store = store
        self._transport = transport
        self._grace_s = grace_s
        self._clock = clock
        self._count_kills = count_kills
        # As they stood at the last two looks: the last one may have come after the kill.
        self._kills = deque[OomKills](maxlen=2)
        self._is_killed_here = False
        self._unwanted_since: float | None = None
        self._is_stopping = False

    def stop(self) -> None:
        """Remember that the worker has been told to stop; safe inside a signal handler."""
        self._is_stopping = True

    def begin(self, rq_id: str) -> None:
        """Forget the previous attempt, and hold the new one until its process starts it."""
        self._unwanted_since = None
        self._is_killed_here = False
        self._kills.clear()
        self.hold(rq_id)

    def hold(self, rq_id: str) -> bool:
        """Renew the lease; true when the attempt should have ended a while ago."""
        self._kills.append(self._count_kills())
        Runs(self._store, job_id_of(rq_id)).hold(rq_id)
        if self._is_wanted(rq_id):
            self._unwanted_since = None
            return False
        now = self._clock()
        self._unwanted_since = now if self._unwanted_since is None else self._unwanted_since
        return now - self._unwanted_since >= self._grace_s

    def note_kill(self) -> None:
        """Remember that it is this side that ends the attempt's process."""
        self._is_killed_here = True

    def lost(self, rq_id: str, wait_status: int | None) -> None:
        """Queue the next attempt at once: this one's process has died."""
        error = self._cause(wait_status)
        log.warning("attempt.lost", extra=rq_fields(rq_id) | {"cause": error.detail})
        self._release(rq_id)
        if not is_hand(rq_id):
            self._give_up(rq_id, error)

    def stopped(self, rq_id: str) -> None:
        """Put on record that an operator stopped the attempt with RQ's own command."""
        self._release(rq_id)
        if is_hand(rq_id):
            return
        job_id, attempt = parse_rq_job_id(rq_id)
        try:
            if self._store.request_cancel(job_id) is JobStatus.CANCELING:
                self._store.confirm_cancel(job_id, attempt)
        except (StaleAttempt, JobMissing):
            log.info("attempt.already_over", extra=rq_fields(rq_id))

    def settle(self, rq_id: str) -> None:
        """Give up an attempt that RQ says has ended and that has left no end on record."""
        self._release(rq_id)
        if is_hand(rq_id):
            return
        job_id, attempt = parse_rq_job_id(rq_id)
        try:
            record = self._store.get(job_id)
        except JobMissing:
            return
        if record.attempt == attempt and record.status in {
            JobStatus.RUNNING,
            JobStatus.CANCELING,
        }:
            log.warning("attempt.unsettled", extra=rq_fields(rq_id) | {"status": record.status})
            self._give_up(rq_id, None)

    def _is_wanted(self, rq_id: str) -> bool:
        try:
            if is_hand(rq_id):
                # While another attempt is waited for, too: a finished run is kept for it.
                status = self._store.status_of(job_id_of(rq_id))
                return status in {JobStatus.QUEUED, JobStatus.RUNNING}
            if self._is_stopping:
                self._store.note_stopping(*parse_rq_job_id(rq_id))
            return self._store.renew(*parse_rq_job_id(rq_id)) is not JobStatus.CANCELING
        except (StaleAttempt, JobMissing):
            return False

    def _release(self, rq_id: str) -> None:
        Runs(self._store, job_id_of(rq_id)).release(rq_id)

    def _give_up(self, rq_id: str, error: JobError | None) -> None:
        job_id, attempt = parse_rq_job_id(rq_id)
        try:
            if self._is_stopping:  # it may have died before the lease was renewed once more
                self._store.note_stopping(job_id, attempt)
            give_up(self._store, self._transport, job_id, attempt, error=error)
        except (StaleAttempt, JobMissing):
            log.info("attempt.already_over", extra=rq_fields(rq_id))

    def _cause(self, wait_status: int | None) -> JobError:
        status = wait_status or 0
        if self._is_for_memory(status):
            return JobError(code="out_of_memory_host", detail=FOR_MEMORY, retryable=True)
        how = (
            f"was ended by {signal.Signals(os.WTERMSIG(status)).name}"
            if os.WIFSIGNALED(status)
            else f"ended with exit code {os.waitstatus_to_exitcode(status)}"
        )
        return JobError(
            code="worker_lost", detail=f"the worker's process {how}", retryable=True
        )

    def _is_for_memory(self, status: int) -> bool:
        """Whether the kernel says that it has ended a process, and nobody else has."""
        is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if self._is_killed_here or not is_killed or not self._kills:
            return False
        return self._count_kills().explain(self._kills[0])


class ReaperThread:
    """Looks for orphaned jobs every few seconds for as long as the worker lives.

    Args:
        store: The job records, over a connection of this thread's own.
        transport: Where next attempts are queued.
        also: Called after each look, whether or not it went well.
        every_s: Seconds between two looks.
    """

    def __init__(
        self,
        store: JobStore,
        transport: Transport,
        *,
        also: Sequence[Callable[[], None]],
        every_s: float = REAPER_INTERVAL_S,
    ) -> None:
        self._store = store
        self._transport = transport
        self._also = also
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            for chore in (self._requeue, *self._also):
                try:
                    chore()
                except Exception:  # whatever one record holds, the others need this thread
                    log.exception("reaper.failed")

    def _requeue(self) -> None:
        requeue_orphans(
            self._store, self._transport, on_reaped=_log_reaped, every_s=self._every_s
        )


def _log_reaped(reaped: Reaped) -> None:
    fields = {"job_id": reaped.job_id, "attempt": reaped.attempt, "status": reaped.status}
    log.warning("job.reaped", extra=fields)
