"""Exit with 0 when a worker of this container has sent a recent heartbeat.

RQ keeps a hash per worker with the host it runs on and the time of its last heartbeat; a
container's host name is its own, so other workers on the same queue do not count.
"""

import os
import socket
import sys
from datetime import UTC, datetime, timedelta

from redis import Redis
from redis.exceptions import RedisError
from rq.utils import utcparse
from rq.worker_registration import get_keys

from fimlora_contract.environment import SettingsError, hide_password, read_secret

OLDEST = timedelta(seconds=60)
DEFAULT_URL = "redis://localhost:6379/0"


def last_heartbeat(redis: Redis, hostname: str) -> datetime | None:
    """When a worker on this host was last heard of."""
    records = [
        redis.hmget(key, "hostname", "last_heartbeat") for key in get_keys(connection=redis)
    ]
    heard = [when.decode() for host, when in records if when and host == hostname.encode()]
    return max((utcparse(when) for when in heard), default=None)


def problem(heard: datetime | None, *, now: datetime) -> str | None:
    """What is wrong, or ``None`` when the worker is alive."""
    if heard is None:
        return "no worker of this host is registered"
    if now - heard > OLDEST:
        return f"last heartbeat {(now - heard).total_seconds():.0f} s ago"
    return None


def look(url: str) -> str | None:
    """What is wrong with the worker of this host, or with the server that would know."""
    redis = Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3)
    try:
        return problem(last_heartbeat(redis, socket.gethostname()), now=datetime.now(UTC))
    except RedisError as error:
        return f"{hide_password(url)} does not answer: {error}"


def main() -> int:
    """Look, say what is wrong, and answer as docker expects."""
    try:
        url = read_secret(os.environ, "REDIS_URL") or DEFAULT_URL
        found = look(url)
    except (SettingsError, ValueError) as error:
        found = f"REDIS_URL cannot be used: {error}"
    if found:
        sys.stderr.write(found + "\n")
    return int(found is not None)


if __name__ == "__main__":
    sys.exit(main())
