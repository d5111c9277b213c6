"""What the API process does beside answering: small steps that are repeated for ever."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from fimlora_jobs.attempts import REAPER_INTERVAL_S
from fimlora_jobs.reaper import Reaped, Transport, requeue_orphans
from fimlora_jobs.results.kept_records import KeptRecords
from fimlora_jobs.retention import forget_old_jobs
from fimlora_jobs.store import JobStore

RETENTION_INTERVAL_S = 60.0
LOOK_INTERVAL_S = 5.0  # at the server of the jobs
REBUILT_WITHIN_S = 5.0  # what takes longer goes on while requests are answered
logger = logging.getLogger(__name__)


@contextmanager
def repeating(
    name: str, step: Callable[[], object], *, every_s: float, first_s: float | None = None
) -> Iterator[None]:
    """Take a step every ``every_s`` inside the block; a step that fails ends nothing.

    Args:
        name: Of the thread, for the log.
        step: What is done.
        every_s: Seconds between two steps.
        first_s: Seconds until the first one, where that is another time.
    """
    stop = threading.Event()

    def loop() -> None:
        pause_s = every_s if first_s is None else first_s
        while not stop.wait(pause_s):
            pause_s = every_s
            try:
                step()
            except RedisError as error:
                logger.warning("%s.redis_unavailable", name, extra={"error": str(error)})
            except Exception:
                # The loop outlives any one bad record; the next step may do better.
                logger.exception("%s.failed", name)

    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=every_s + 1)


def reap(store: JobStore, transport: Transport, *, every_s: float = REAPER_INTERVAL_S) -> None:
    """Find orphaned jobs without any worker."""
    requeue_orphans(store, transport, on_reaped=_log, every_s=every_s)


def forget(store: JobStore, kept: KeptRecords, *, days: float) -> None:
    """Delete old records, in one API process of several at a time."""
    if not store.lock("retention", ttl_s=RETENTION_INTERVAL_S * 0.8).acquire():
        return
    if n_deleted := forget_old_jobs(store, days=days, forget_kept=kept.forget):
        logger.info("jobs.forgotten", extra={"n": n_deleted, "older_than_days": days})


def _log(reaped: Reaped) -> None:
    fields = {"job_id": reaped.job_id, "attempt": reaped.attempt, "status": reaped.status}
    logger.warning("job.reaped", extra=fields)
