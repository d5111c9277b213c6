"""Forget jobs that ended long ago, so that Redis does not grow for ever.

Ids begin with the time of creation, so old jobs are found without reading any record, and
an id that is no longer on record still tells that it is old. Results stay: they are found
by their digests and pins.
"""

from collections.abc import Callable

from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import created_ms
from fimlora_jobs.store import JobOpen, JobStore

DAY_MS = 24 * 3600 * 1000


def _nothing(_: str) -> None:
    """What nothing is kept of besides."""


def forget_old_jobs(
    store: JobStore,
    *,
    days: float,
    limit: int = 1000,
    forget_kept: Callable[[str], object] = _nothing,
) -> int:
    """Delete the records of jobs that have ended and were created over ``days`` ago.

    Args:
        store: Where jobs are on record.
        days: How long a record is kept at least.
        limit: How many old jobs to look at, the oldest first.
        forget_kept: Deletes what is kept of a job elsewhere, before its record goes.

    Returns:
        How many were deleted.
    """
    n_deleted = 0
    for job_id in store.ids_before(store.now_ms() - int(days * DAY_MS), limit=limit):
        try:
            if store.status_of(job_id).is_final:
                forget_kept(job_id)
                store.delete(job_id)
                n_deleted += 1
        except (JobOpen, JobMissing):
            continue  # it is looked at again next time
    return n_deleted


def is_past(job_id: str, *, now_ms: int, days: float) -> bool:
    """Whether a job of this id would have been forgotten by now."""
    created = created_ms(job_id)
    return created is not None and created < now_ms - int(days * DAY_MS)
