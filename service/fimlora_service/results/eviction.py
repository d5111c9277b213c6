"""Delete results beyond the limits, in one process at a time."""

import logging
from contextlib import suppress
from dataclasses import dataclass

from redis.exceptions import LockNotOwnedError

from fimlora_jobs.results.eviction import Entry, Limits, choose_victims
from fimlora_jobs.results.store import StoredResult
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.retention import DAY_MS
from fimlora_service.settings import Settings

REST_MS = 10 * 60 * 1000
EVICTION_INTERVAL_S = 60.0
LOCK_TTL_S = 600.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evicted:
    """What one round has deleted."""

    entries: int = 0
    bytes: int = 0


def limits_of(settings: Settings, *, rest_ms: int = REST_MS) -> Limits:
    """The limits that the operator has set."""
    return Limits(
        max_bytes=settings.cache_max_bytes or None,
        max_age_ms=int(settings.cache_max_age_days * DAY_MS) or None,
        rest_ms=rest_ms,
    )


def evict(artifacts: TrackedArtifacts, limits: Limits) -> Evicted:
    """Delete what is beyond the limits and not needed; nothing while another process does.

    Without limits nothing is looked at.
    """
    store = artifacts.usage.store
    if limits.max_bytes is None and limits.max_age_ms is None:
        return Evicted()
    lock = store.lock("eviction", ttl_s=LOCK_TTL_S)
    if not lock.acquire():
        return Evicted()
    try:
        return _evict(artifacts, limits)
    finally:
        with suppress(LockNotOwnedError):  # it ran out, and may be held by another process
            lock.release()


def make_room(artifacts: TrackedArtifacts, limits: Limits) -> None:
    """Take one step of the loop that keeps the limits, and once a day clear up."""
    evict(artifacts, limits)
    store = artifacts.usage.store
    if store.lock("leftovers", ttl_s=DAY_MS / 1000).acquire():
        artifacts.remove_leftovers(before_ms=store.now_ms() - DAY_MS)


def _evict(artifacts: TrackedArtifacts, limits: Limits) -> Evicted:
    usage = artifacts.usage
    used = usage.last_uses()  # first: what is used from now on cannot be claimed
    needed, now_ms = usage.needed(), usage.store.now_ms()
    entries = [_entry(result, used) for result in artifacts.list()]
    n_deleted, n_bytes = 0, 0
    for victim in choose_victims(entries, needed=needed, limits=limits, now_ms=now_ms):
        if not usage.claim(victim.digest, seen_ms=used.get(victim.digest)):
            continue
        try:
            artifacts.delete(victim.digest)
        finally:
            usage.release(victim.digest)
        n_deleted, n_bytes = n_deleted + 1, n_bytes + victim.size
    if n_deleted:
        usage.count("evicted_entries", n_deleted)
        usage.count("evicted_bytes", n_bytes)
        logger.info("results.evicted", extra={"n": n_deleted, "bytes": n_bytes})
    return Evicted(n_deleted, n_bytes)


def _entry(result: StoredResult, used: dict[str, int]) -> Entry:
    return Entry(result.digest, result.size, used.get(result.digest, result.changed_ms))
