"""Whether what was written is on disk: asked once for all who want to know at the moment.

A server that syncs its append-only file every second has, after a loss of power, forgotten what it
confirmed in the last one. So whoever answers a request *owes*: what the request has written, and
that a job has ended, is not told before it is on disk.

WAITAOF would be the question to ask, and its answer is not true: within a second of the last sync,
Redis and Valkey take what is written for synced as soon as their buffer is empty, and WAITAOF with
it (``flushAppendOnlyFile``; seen in Valkey 9.1). So we see to it ourselves. Where the file can be
reached, on the same machine, we sync it. Elsewhere we wait until the server has: it begins a sync a
second after the last one, unless one is going on, and says whether one is.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fimlora_jobs.answers import as_ms, text_of
from fimlora_jobs.connection import is_away
from fimlora_jobs.disk import sync

WAIT_S = 6.0
LOOK_EVERY_S = 30.0
# Of the server's syncs, and as much again as its clock and its loop may be late.
SYNC_EVERY_S = 1.0
LATE_S = 0.15
ASK_EVERY_S = 0.02
# Rounds at once. One sync at a time serves all who came during the last; waiting costs nothing, so
# there who asks is not kept waiting for others' rounds.
N_NEAR = 1
N_FAR = 24
N_LOOKS = 25
TAIL = 1 << 18
PROMISED = "on disk before it is answered"
WRITTEN = float("inf")


@dataclass
class Debt:
    """What must be on disk before a request is answered.

    Attributes:
        until_ms: Everything up to here, by the server's clock; 0 for nothing.
    """

    until_ms: float = 0


_debt: ContextVar[Debt | None] = ContextVar("debt", default=None)


@contextmanager
def owing() -> Iterator[Debt]:
    """Collect what is owed inside the block, also in the threads it is carried out in."""
    debt = Debt()
    token = _debt.set(debt)
    try:
        yield debt
    finally:
        _debt.reset(token)


def owe(until_ms: float = WRITTEN) -> None:
    """Have what is on record until then be on disk before anything is told of it.

    Outside of a request, in a worker say, nobody is told, and nothing is owed.
    """
    if debt := _debt.get():
        debt.until_ms = max(debt.until_ms, until_ms)


class NotOnDisk(RedisTimeoutError):
    """The server has not brought its writes to disk within the time given."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How a server brings its writes to disk.

    Attributes:
        why_not: Why nothing can be promised; empty if it may be.
        is_immediate: Whether it does so before it answers.
        files: Its append-only file, if that can be reached from here.
    """

    why_not: str = ""
    is_immediate: bool = False
    files: "AppendOnlyFiles | None" = None


class AppendOnlyFiles:
    """A server's append-only file, which is several; the newest part is what is written to.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._synced: list[Path] = []

    def sync(self) -> None:
        """Bring them to disk; one at a time may do so.

        Raises:
            OSError: They do not come there.
        """
        found = sorted(self._folder.iterdir())
        if found == self._synced:  # all but the newest have not been written to since
            sync(newest_part(found))
            return
        for path in found:
            with suppress(FileNotFoundError):  # it has been made anew, and that is synced
                sync(path)
        sync(self._folder)
        self._synced = found

    def has(self, token: bytes) -> bool:
        """Whether what is written to ends with a token, or nearly so."""
        with newest_part(list(self._folder.iterdir())).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            return token in file.read()


def newest_part(found: list[Path]) -> Path:
    """The part of an append-only file that is written to.

    Raises:
        FileNotFoundError: There is none.
    """
    parts = [path for path in found if path.name.endswith(".incr.aof")]
    if not parts:
        raise FileNotFoundError("there is no append-only file")
    return max(parts, key=lambda path: int(path.name.split(".")[-3]))


class Durability:
    """Brings a server's writes to disk, or waits until they are there.

    Args:
        redis: A connected client.
        key: Where a write of our own goes.
        folder: Where the server's own folder is found here, if by another path than the server's.
        wait_s: How long that may take.
        clock: Seconds of a monotonic clock.
        sleep: Waits some seconds.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        key: str,
        folder: Path | None = None,
        wait_s: float = WAIT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._redis = redis
        self._key = key
        self._folder = folder
        self._wait_s = wait_s
        self._clock = clock
        self._sleep = sleep
        self._lock = Lock()
        self._next: Future[None] | None = None
        self._askers = ThreadPoolExecutor(N_FAR, thread_name_prefix="durability")
        self._n_rounds = 0
        self._until_ms = 0
        self._policy = Policy()
        self._looked_at = float("-inf")

    @property
    def promise(self) -> str:
        """What was promised of late, in words."""
        why_not = self._policy.why_not
        return f"not promised: {why_not}" if why_not else PROMISED

    def covers(self, until_ms: float) -> bool:
        """Whether everything until then is known to be on disk."""
        return until_ms < self._until_ms

    def settled(self) -> "Future[None]":
        """Done when all that has been written until now is on disk, as far as that is promised.

        Everybody who asks before a round begins is served by it, so a few rounds at a time serve
        any number.
        """
        with self._lock:
            if self._next is None:
                self._next = Future()
                self._next.set_running_or_notify_cancel()  # it is everybody's: nobody cancels it
            asked = self._next
            self._begin()
        return asked

    def probe(self) -> None:
        """Write something, and learn whether what was written before has come to disk.

        Raises:
            RedisError: The server is away, or refuses writes.
        """
        self._redis.set(self._key, secrets.token_hex(8))
        now_ms = as_ms(self._redis.time())
        with self._lock:
            self._until_ms = min(self._until_ms, now_ms)
        self._look()

    def close(self) -> None:
        """Begin no more rounds."""
        self._askers.shutdown(wait=False)

    def _begin(self) -> None:
        """Begin a round if somebody waits for one; the lock is held."""
        at_once = N_NEAR if self._policy.files else N_FAR
        if self._next is not None and self._n_rounds < at_once:
            self._n_rounds += 1
            served, self._next = self._next, None
            self._askers.submit(self._round, served)

    def _round(self, served: "Future[None]") -> None:
        try:
            self._settle()
        except BaseException as error:
            served.set_exception(error)
        else:
            served.set_result(None)
        with self._lock:
            self._n_rounds -= 1
            self._begin()

    def _settle(self) -> None:
        deadline = self._clock() + self._wait_s
        policy = self._look()
        if policy.why_not or policy.is_immediate:
            began_ms = as_ms(self._redis.time())
        elif policy.files:
            began_ms = self._wait_until(deadline, written)
            policy.files.sync()
        else:
            began_ms = self._wait_until(deadline, settled)
            self._sleep(SYNC_EVERY_S + LATE_S)
            self._redis.time()  # the server's loop has gone round once more before it answers
            self._wait_until(deadline, settled)
        with self._lock:
            # Also where that is earlier than before: the server's clock went back, and what is
            # written now has times that were taken for covered.
            self._until_ms = began_ms

    def _wait_until(self, deadline: float, state: Callable[[dict[str, Any]], bool]) -> int:
        """Wait for a state of the server's; answers its clock, right before it was in that."""
        pipeline = self._redis.pipeline(transaction=False)
        while True:
            pipeline.time()
            pipeline.info("persistence")
            time, persistence = pipeline.execute()
            if state(persistence):
                return as_ms(time)
            if self._clock() >= deadline:
                raise NotOnDisk(
                    f"the server's writes were not on disk within {self._wait_s:g} s"
                )
            self._sleep(ASK_EVERY_S)

    def _look(self) -> Policy:
        """How the server brings its writes to disk, as it said of late."""
        if self._clock() - self._looked_at >= LOOK_EVERY_S:
            self._policy = find_policy(self._redis, key=self._key, folder=self._folder)
            self._looked_at = self._clock()
        return self._policy


def written(persistence: dict[str, Any]) -> bool:
    """Whether a server has handed all its writes to the system."""
    is_sound = persistence.get("aof_last_write_status", "ok") == "ok"
    return is_sound and int(persistence.get("aof_buffer_length", 0)) == 0


def settled(persistence: dict[str, Any]) -> bool:
    """Whether it has, and no sync is going on or waits to be."""
    return written(persistence) and int(persistence.get("aof_pending_bio_fsync", 0)) == 0


def find_policy(redis: Redis, *, key: str, folder: Path | None = None) -> Policy:
    """How a server brings its writes to disk.

    Args:
        redis: A connected client.
        key: Where a write of our own goes.
        folder: Where the server's own folder is found here, if by another path than the server's.

    Raises:
        RedisError: The server is away.
    """
    try:
        found = redis.config_get("append*", "dir", "no-appendfsync-on-rewrite")
    except ResponseError as error:
        if is_away(error):
            raise
        found = {}  # no right to ask; where its file is found, we need not know
    set_to = {text_of(name): text_of(value) for name, value in found.items()}
    if not redis.info("persistence").get("aof_enabled"):
        return Policy(why_not="the server keeps no append-only file (appendonly no)")
    match set_to.get("appendfsync"):
        case "no":
            return Policy(why_not="the server never syncs what it writes (appendfsync no)")
        case "always":
            return Policy(is_immediate=True)
    if "aof_pending_bio_fsync" not in redis.info("persistence"):
        return Policy(why_not="the server does not tell when it syncs what it writes")
    named = set_to.get("appenddirname") or "appendonlydir"
    for place in filter(None, (folder, Path(set_to.get("dir", "")))):
        files = AppendOnlyFiles(place / named)
        if place.is_absolute() and is_reached(files, redis, key=key):
            return Policy(files=files)
    if "appendfsync" not in set_to:
        return Policy(why_not="the server does not say how it syncs (no right to CONFIG)")
    if set_to.get("no-appendfsync-on-rewrite") == "yes":
        return Policy(why_not="the server skips syncs (no-appendfsync-on-rewrite yes)")
    return Policy()


def is_reached(files: AppendOnlyFiles, redis: Redis, *, key: str) -> bool:
    """Whether files of this machine are the server's, and no other's.

    A path says little: every container may have it. What we write must be found there.
    """
    token = secrets.token_hex(16)
    try:
        redis.set(key, token)
        for _ in range(N_LOOKS):
            if files.has(token.encode()):
                return True
            time.sleep(ASK_EVERY_S)  # a sync that is going on holds writes up
    except (OSError, ResponseError):
        pass
    return False
