"""Exit with 0 when a worker of this container has sent a recent heartbeat.

RQ keeps a hash per worker with the host it runs on and the time of its last heartbeat; a
container's host name is its own, so other workers on the same queue do not count.
"""

import os
import socket
import sys
from datetime import UTC, datetime, timedelta

from redis import Redis
from rq.utils import utcparse
from rq.worker_registration import get_keys

OLDEST = timedelta(seconds=60)


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


def main() -> int:
    """Look, say what is wrong, and answer as docker expects."""
    redis = Redis.from_url(os.environ["REDIS_URL"], socket_timeout=3, socket_connect_timeout=3)
    found = problem(last_heartbeat(redis, socket.gethostname()), now=datetime.now(UTC))
    if found:
        sys.stderr.write(found + "\n")
    return int(found is not None)


if __name__ == "__main__":
    sys.exit(main())
