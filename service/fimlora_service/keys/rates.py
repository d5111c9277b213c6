"""How often a key may ask: counted in the store for all processes, in this one while it is away."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING

from redis import Redis
from redis.exceptions import RedisError

from fimlora_service.errors import RateLimited

if TYPE_CHECKING:  # a tenth of a second, which nobody pays who has no keys
    from limits import RateLimitItem
    from limits.strategies import SlidingWindowCounterRateLimiter

ALL, SUBMISSIONS = "requests", "submissions"


@dataclass(frozen=True, slots=True)
class Standing:
    """How one limit stands for somebody.

    Attributes:
        name: Of the limit.
        quota: Requests in a window.
        window_s: How long that is.
        left: Requests that are left now.
        reset_s: Seconds until there are more.
    """

    name: str
    quota: int
    window_s: int
    left: int
    reset_s: int


def headers_of(standings: Sequence[Standing]) -> dict[str, str]:
    """The header fields of the IETF's draft on rate limits."""
    if not standings:
        return {}
    return {
        "RateLimit-Policy": ", ".join(
            f'"{s.name}";q={s.quota};w={s.window_s}' for s in standings
        ),
        "RateLimit": ", ".join(f'"{s.name}";r={s.left};t={s.reset_s}' for s in standings),
    }


class RateLimits:
    """Limits on how often each key is used; safe to use from several threads.

    Args:
        redis: Counts for all processes.
        rates: Limits by name, such as ``600/minute``.
        prefix: Before every key.
    """

    def __init__(
        self, redis: Redis, rates: Mapping[str, str], *, prefix: str = "fimlora:rate"
    ) -> None:
        self._redis = redis
        self._rates = dict(rates)
        self._prefix = prefix

    def hit(self, who: str, names: Sequence[str]) -> dict[str, str]:
        """Count a request of somebody against some limits; answers header fields.

        Raises:
            RateLimited: One is used up.
        """
        limited = [(name, self._limits[name]) for name in names if name in self._rates]
        if not limited:
            return {}
        try:
            return _hit(self._shared, who, limited)
        except RedisError:
            # Its absence is for the request itself to tell, if that needs it.
            return _hit(self._own, who, limited)

    @cached_property
    def _limits(self) -> "dict[str, RateLimitItem]":
        from limits import parse

        return {name: parse(rate) for name, rate in self._rates.items()}

    @cached_property
    def _shared(self) -> "SlidingWindowCounterRateLimiter":
        from limits.storage import RedisStorage
        from limits.strategies import SlidingWindowCounterRateLimiter

        pool = self._redis.connection_pool
        storage = RedisStorage("redis://", connection_pool=pool, key_prefix=self._prefix)
        return SlidingWindowCounterRateLimiter(storage)

    @cached_property
    def _own(self) -> "SlidingWindowCounterRateLimiter":
        from limits.storage import MemoryStorage
        from limits.strategies import SlidingWindowCounterRateLimiter

        return SlidingWindowCounterRateLimiter(MemoryStorage())


def _hit(
    limiter: "SlidingWindowCounterRateLimiter",
    who: str,
    limited: "Sequence[tuple[str, RateLimitItem]]",
) -> dict[str, str]:
    """Count one request.

    Raises:
        RateLimited: There were too many.
    """
    allowed = [limiter.hit(limit, name, who) for name, limit in limited]
    standings = list(_standings(limiter, who, limited))
    headers = headers_of(standings)
    refused = [s for s, is_allowed in zip(standings, allowed, strict=True) if not is_allowed]
    if refused:
        worst = max(refused, key=lambda standing: standing.reset_s)
        raise RateLimited(
            f"more than {worst.quota} {worst.name} in {worst.window_s} s",
            headers=headers | {"Retry-After": str(worst.reset_s)},
        )
    return headers


def _standings(
    limiter: "SlidingWindowCounterRateLimiter",
    who: str,
    limited: "Sequence[tuple[str, RateLimitItem]]",
) -> Iterator[Standing]:
    for name, limit in limited:
        stats = limiter.get_window_stats(limit, name, who)
        reset_s = max(1, ceil(stats.reset_time - time.time()))
        yield Standing(name, limit.amount, limit.get_expiry(), stats.remaining, reset_s)
