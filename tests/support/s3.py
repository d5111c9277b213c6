"""A real S3-compatible server for tests: rclone over an empty folder, one per test process."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

STARTUP_S = 10.0
BUCKET = "results"


@dataclass
class S3Server:
    """A server on a port of its own, over a folder that outlives it.

    Attributes:
        folder: Each folder in it is a bucket.
        port: Where it listens.
        prefix: Of all objects of a test.
    """

    folder: Path
    port: int
    prefix: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where a test's results are kept."""
        return f"s3://{BUCKET}/{self.prefix}"

    @property
    def objects(self) -> Path:
        """Where the objects of a test lie on disk."""
        return self.folder / BUCKET / self.prefix

    @property
    def environment(self) -> dict[str, str]:
        """What the client library reads."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start serving."""
        # Beside this interpreter: an environment need not be activated to be used.
        beside = Path(sys.executable).parent / "rclone"
        command = [
            beside if beside.exists() else "rclone", "serve", "s3", "--config", "", "--auth-key",
            "key,secret", "--addr", f"127.0.0.1:{self.port}", self.folder,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + STARTUP_S
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port)),
            ):
                return
            time.sleep(0.02)
        raise RuntimeError(f"rclone did not answer within {STARTUP_S:g} s")

    def stop(self) -> None:
        """Go away; what was kept stays."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """This process's server; prefer `s3`, which is empty and up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = S3Server(tmp_path_factory.mktemp("s3"), port)
    (server.folder / BUCKET).mkdir()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A server that is up, an empty prefix, and the environment that leads there."""
    s3_server.prefix = uuid4().hex
    if s3_server.process is None:
        s3_server.start()
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server
