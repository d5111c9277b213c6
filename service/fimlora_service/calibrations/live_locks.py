"""Locks that live as long as who holds them: short ones, renewed by one thread for all.

A process that is killed can give nothing back. What it held is free again after ``LOCK_TTL_S``,
however long the work under a lock may take.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock as ThreadLock

from redis.exceptions import LockNotOwnedError, RedisError
from redis.lock import Lock

from fimlora_jobs.store import JobStore

LOCK_TTL_S = 5.0


@dataclass(frozen=True, slots=True)
class _Given:
    """A lock that was given back while Redis was away.

    Attributes:
        lock: The lock.
        until: When it has run out by itself, on this process's clock.
    """

    lock: Lock
    until: float


class LiveLocks:
    """The locks that requests of this process hold.

    Args:
        store: Where locks are kept.
        ttl_s: How long a lock outlives this process. `renew` is called several times as often.
    """

    def __init__(self, store: JobStore, *, ttl_s: float = LOCK_TTL_S) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._guard = ThreadLock()
        # By what their holder has written into them.
        self._held: dict[str, Lock] = {}
        self._given: dict[str, _Given] = {}

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Hold a lock inside the block; says whether it is held, or somebody else does."""
        token, lock = uuid.uuid4().hex, self._store.lock(name, ttl_s=self._ttl_s)
        if not lock.acquire(token=token):
            yield False
            return
        with self._guard:
            self._held[token] = lock
        try:
            yield True
        finally:
            self._give_back(token, lock)

    def renew(self) -> None:
        """Let all locks that are held live on, and give back those that could not be.

        Raises:
            RedisError: Redis is away; the next call may do better.
        """
        with self._guard:
            held, given = dict(self._held), dict(self._given)
        for token, one in given.items():
            if time.monotonic() > one.until or _is_released(one.lock, token):
                with self._guard:
                    del self._given[token]
        for token, lock in held.items():
            _prolong(lock, token)
            with self._guard:
                is_over = token not in self._held
            if is_over:  # given back meanwhile, perhaps before it was prolonged
                _is_released(lock, token)

    def _give_back(self, token: str, lock: Lock) -> None:
        with self._guard:
            del self._held[token]
        if not _is_released(lock, token):
            with self._guard:
                self._given[token] = _Given(lock, time.monotonic() + self._ttl_s)


def _prolong(lock: Lock, token: str) -> None:
    """Start a lock's time anew; one that ran out while Redis was away is taken again."""
    try:
        lock.reacquire()
    except LockNotOwnedError:
        lock.do_acquire(token)


def _is_released(lock: Lock, token: str) -> bool:
    """Whether a lock is free of its holder; not so while Redis is away."""
    try:
        # Not `release`, which forgets the token before it has asked.
        lock.do_release(token)
    except LockNotOwnedError:
        return True
    except RedisError:
        return False
    return True
