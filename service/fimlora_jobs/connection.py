"""Connections to Redis: workers sit out a store that is away, requests do not wait for it.

A store that refuses writes is away, too: its memory or its disk is full, it is loading, or it is a
replica for a while. Whoever can wait waits, and goes on as if nothing had been.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from redis import Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    ExecAbortError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

LONGEST_PAUSE_S = 2.0
SAY_EVERY_S = 30.0
PARTING_S = 3.0
# What a server answers that cannot take the command now, and will later. For some of them the
# library has a class, and takes the word away.
REFUSALS = frozenset({
    "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOGOODSLAVE", "NOREPLICAS", "OOM",
    "READONLY", "TRYAGAIN", "UNBLOCKED",
})  # fmt: skip
AWAY = (
    RedisConnectionError, RedisTimeoutError, ConnectionError, TimeoutError, OutOfMemoryError,
    ReadOnlyError, ClusterDownError, TryAgainError,
)  # fmt: skip
T = TypeVar("T")
log = logging.getLogger(__name__)


def is_away(error: BaseException) -> bool:
    """Whether an error says that the store cannot be reached, or takes no writes for now.

    A wrong password says neither: it stays wrong.
    """
    if isinstance(error, AuthenticationError | AuthorizationError):
        return False
    return isinstance(error, AWAY) or _refusal_in(error) in REFUSALS


def why_away(error: BaseException) -> str:
    """What is wrong with a store that is away, in words without anything that was sent to it."""
    if isinstance(error, OutOfMemoryError):
        return "refuses writes: OOM"
    if isinstance(error, ReadOnlyError):
        return "refuses writes: READONLY"
    word = _refusal_in(error)
    if word in REFUSALS:
        return f"refuses writes: {word}"
    return f"does not answer: {type(error).__name__}"


class Patience:
    """For how long the clients that share it wait: for ever, until they are told to end.

    Args:
        clock: Seconds of a monotonic clock.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_at = float("inf")
        self._said_at = float("-inf")

    def __deepcopy__(self, memo: dict[int, Any]) -> "Patience":
        """The same one: each connection copies what it was given."""
        return self

    def end(self, *, in_s: float = PARTING_S) -> None:
        """Wait no longer than this from now on; safe inside a signal handler."""
        self._ends_at = min(self._ends_at, self._clock() + in_s)

    def is_worth(self, error: Exception) -> bool:
        """Whether to wait and try again after an error; the log says so now and then."""
        now = self._clock()
        if not is_away(error) or now >= self._ends_at:
            return False
        if now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            log.warning("store.away", extra={"reason": why_away(error)})
        return True


class PatientRetry(Retry):
    """Tries again for as long as the store is away and there is patience."""

    def __init__(self, patience: Patience) -> None:
        backoff = ExponentialBackoff(cap=LONGEST_PAUSE_S, base=0.05)
        super().__init__(backoff, -1, (RedisError, *AWAY))
        self._patience = patience

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[[Exception], Any] | Callable[[Exception, int], Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        """Call until it goes well, or fails for another reason."""
        worth = is_retryable or self._patience.is_worth
        return super().call_with_retry(do, fail, worth, with_failure_count)


def patient_redis(url: str, *, patience: Patience | None = None) -> Redis:
    """A client that waits for a store that is away.

    For workers: one that gives up loses hours of work.

    Args:
        url: Of the server.
        patience: Shared with others that are to end with it.
    """
    return Redis.from_url(
        url,
        retry=PatientRetry(patience or Patience()),
        socket_connect_timeout=2.0,
        socket_timeout=10.0,
    )


def make_patient(redis: Redis) -> None:
    """Let a client that somebody else has made wait for a store that is away."""
    redis.set_retry(PatientRetry(Patience()))


def impatient_redis(url: str) -> Redis:
    """A client that fails at once.

    For the API: a request must not wait for a server that is away.
    """
    return Redis.from_url(
        url, socket_connect_timeout=0.5, socket_timeout=2.0, retry=Retry(NoBackoff(), 0)
    )


def _refusal_in(error: BaseException) -> str:
    """The first word of what the server answered; empty if it was not the server."""
    if not isinstance(error, ResponseError):
        return ""
    # A pipeline's error begins with the command, a transaction's with what became of it.
    text = str(error).rpartition("caused error: ")[2]
    if isinstance(error, ExecAbortError):
        text = text.rpartition("because of: ")[2]
    return text.partition(" ")[0]
