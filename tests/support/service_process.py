"""The real server process: ``python -m fimlora_service`` on a free port of this machine."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).parents[2]
STARTUP_S = 20.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_service(
    data_dir: Path, redis_url: str, **settings: str
) -> Iterator[tuple[httpx2.Client, subprocess.Popen[bytes]]]:
    """Start the service, yield a client and the process, stop it; its log is ``data_dir/log``."""
    port = free_port()
    environment = (
        os.environ
        | {
            "PYTHONPATH": os.pathsep.join(
                str(ROOT / p) for p in ("clients/python", "service", "worker")
            ),
            "REDIS_URL": redis_url,
            "FIMLORA_DATA_DIR": str(data_dir),
            "FIMLORA_PORT": str(port),
            "PYTHONFAULTHANDLER": "1",
        }
        | settings
    )
    log = data_dir / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "fimlora_service"], env=environment, stderr=stderr
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            _wait_until_up(client, process, log)
            yield client, process
    finally:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], object], *, seconds: float = 5.0) -> None:
    """Look until something has happened."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def _wait_until_up(client: httpx2.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"status {process.returncode}: {log.read_text()}"
        try:
            client.get("/healthz")
        except httpx2.ConnectError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"the service did not answer within {STARTUP_S:g} s: {log.read_text()}")
