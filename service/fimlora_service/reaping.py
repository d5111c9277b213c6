"""The reaper's loop in the API process: orphaned jobs are found without any worker."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from fimlora_contract.reaper import Reaped, Transport, sweep
from fimlora_contract.store import JobStore

logger = logging.getLogger(__name__)


@contextmanager
def reaping(store: JobStore, transport: Transport, *, interval_s: float) -> Iterator[None]:
    """Sweep every ``interval_s`` inside the block."""
    stop = threading.Event()
    options = {"interval_s": interval_s, "stop": stop}
    thread = threading.Thread(
        target=_loop, args=(store, transport), kwargs=options, name="reaper", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=interval_s + 1)


def _loop(
    store: JobStore, transport: Transport, *, interval_s: float, stop: threading.Event
) -> None:
    while not stop.wait(interval_s):
        try:
            sweep(store, transport, on_reaped=_log)
        except RedisError as error:
            logger.warning("reaper.redis_unavailable", extra={"error": str(error)})
        except Exception:
            # The loop outlives any one bad record; the next sweep may do better.
            logger.exception("reaper.failed")


def _log(reaped: Reaped) -> None:
    fields = {"job_id": reaped.job_id, "attempt": reaped.attempt, "status": reaped.status}
    logger.warning("job.reaped", extra=fields)
