"""Find jobs that nobody works on any more and queue their next attempt.

Runs in the API and in every worker's parent process. A lock keeps two from looking at
once, but nothing depends on it: each step is a compare-and-set, so giving up the same attempt
a second time is refused.

While the store was away nobody could hold a lease, and no clock tells by how much each holder is
late: after a gap between two looks they are all given a term to say that they live.
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

from fimlora_contract.jobs import AttemptEnd, JobError, JobStatus
from fimlora_jobs.attempts import LEASE_S, ORPHAN_GRACE_S, REAPER_INTERVAL_S
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import JobRecord
from fimlora_jobs.store import JobStore, StaleAttempt

LEASE_MS = int(LEASE_S * 1000)
# Times the interval between looks. A look that is a little late is no gap: that would put off what
# is lost at other times. A lease that runs out in less was not held when the gap began.
GAP = 2.4
# After a gap a worker that lives says so at its next look at its job, and may be a little late.
TERM_MS = 12_000
DEADLINE_PASSED = JobError(
    code="timeout", detail="the job had not ended when its deadline_s had passed"
)


class Transport(Protocol):
    """What the reaper needs of the queue."""

    def enqueue(self, job_id: str, attempt: int, *, at_front: bool = False) -> None:
        """Queue one attempt; queueing it again changes nothing."""
        ...

    def waiting(self) -> AbstractSet[tuple[str, int]]:
        """Job ids and attempts in the list that workers pop from."""
        ...


@dataclass(frozen=True, slots=True)
class Reaped:
    """One job that was found without a worker."""

    job_id: str
    attempt: int
    status: JobStatus


def requeue_orphans(
    store: JobStore,
    transport: Transport,
    *,
    on_reaped: Callable[[Reaped], None],
    every_s: float = REAPER_INTERVAL_S,
) -> None:
    """Give every orphaned job its next attempt, unless somebody else is at it.

    Args:
        store: The job records.
        transport: Where next attempts are queued.
        on_reaped: Told of each.
        every_s: How often whoever calls this does.
    """
    if not store.lock("reaper", ttl_s=REAPER_INTERVAL_S * 0.8).acquire():
        return
    look = store.look(gap_ms=int(GAP * 1000 * max(every_s, REAPER_INTERVAL_S)))
    end_overdue(store, on_reaped=on_reaped)
    if 0 <= look.now_ms - look.again_ms < TERM_MS:
        return
    waiting, noted = transport.waiting(), store.missing_ids()
    open_jobs = store.open_jobs()
    # Most open jobs wait in line and need no look: only those that do not, and those that
    # were once found missing.
    doubtful = open_jobs.keys() & noted
    for job_id, (status, attempt) in open_jobs.items():
        if status is not JobStatus.QUEUED or (job_id, attempt) not in waiting:
            doubtful.add(job_id)
    done = noted - open_jobs.keys()
    for record, now_ms in store.states(doubtful):
        try:
            is_waiting = (record.id, record.attempt) in waiting
            if _is_orphan(record, store, is_waiting=is_waiting, now_ms=now_ms):
                on_reaped(give_up(store, transport, record.id, record.attempt))
            if is_waiting:
                done.add(record.id)
        except (JobMissing, StaleAttempt):
            continue  # it moved on while we looked
    store.unlist_missing(done)


def end_overdue(store: JobStore, *, on_reaped: Callable[[Reaped], None]) -> None:
    """Fail jobs whose deadline has passed, queued or running; a worker notices by itself.

    One that is being canceled is left to that.
    """
    ids = store.overdue_ids()
    done = set(ids)
    for record, _ in store.states(ids):
        if record.status not in {JobStatus.QUEUED, JobStatus.RUNNING}:
            continue
        try:
            store.fail(record.id, record.attempt, DEADLINE_PASSED)
            on_reaped(Reaped(record.id, record.attempt, JobStatus.FAILED))
        except (JobMissing, StaleAttempt):
            done.discard(record.id)  # it moved on while we looked: look again
    store.unlist_overdue(done)


def give_up(
    store: JobStore,
    transport: Transport,
    job_id: str,
    attempt: int,
    *,
    counted: bool = True,
    reason: AttemptEnd | None = None,
    error: JobError | None = None,
    is_refused: bool = False,
    at_front: bool = True,
) -> Reaped:
    """Give up an attempt and queue the next one, in front, or end the job with ``error``."""
    change = store.requeue(
        job_id, attempt, counted=counted, reason=reason, error=error, is_refused=is_refused
    )
    if change.status is JobStatus.QUEUED:
        transport.enqueue(job_id, change.attempt, at_front=at_front)
    return Reaped(job_id, change.attempt, change.status)


def _is_orphan(record: JobRecord, store: JobStore, *, is_waiting: bool, now_ms: int) -> bool:
    # One that goes further than a term was taken before the clock was set back.
    is_held = 0 < record.lease_until_ms - now_ms <= LEASE_MS
    if record.status.is_final or is_held:
        return False
    if record.status is not JobStatus.QUEUED:
        return True
    if is_waiting is record.is_missing:
        # The grace runs from here, not from when the job was queued: however long it has
        # waited in line, a worker may have popped it just now.
        store.note_missing(record.id, record.attempt, missing=not is_waiting)
        return False
    return not is_waiting and now_ms - record.updated_at_ms > ORPHAN_GRACE_S * 1000
