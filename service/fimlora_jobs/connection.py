"""Connections to Redis that sit out a restart of the server."""

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

LONGEST_PAUSE_S = 2.0
RETRIES = 60


def patient_redis(url: str) -> Redis:
    """A client that tries again for about two minutes before it gives up.

    A worker loses hours of work when it gives up early; the API, which somebody waits
    for, does the opposite.
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
