"""Connections to Redis: workers sit out a restart of the server, requests do not wait for it."""

from redis import Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

LONGEST_PAUSE_S = 2.0
RETRIES = 60


def patient_redis(url: str) -> Redis:
    """A client that tries again for about two minutes before it gives up.

    For workers: one that gives up early loses hours of work.
    """
    return Redis.from_url(
        url,
        retry=Retry(
            ExponentialBackoff(cap=LONGEST_PAUSE_S, base=0.05),
            RETRIES,
            supported_errors=(RedisConnectionError, RedisTimeoutError, ConnectionError),
        ),
        socket_connect_timeout=2.0,
        socket_timeout=10.0,
    )


def impatient_redis(url: str) -> Redis:
    """A client that fails at once.

    For the API: a request must not wait for a server that is away.
    """
    return Redis.from_url(
        url, socket_connect_timeout=0.5, socket_timeout=2.0, retry=Retry(NoBackoff(), 0)
    )
