"""Start ``fimlora up`` for the demonstration and stop it, with all that it started."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from demo.errors import DemoFailed
from fimlora_client.stack.children import Guardian
from fimlora_client.stack.ownership import Running, find_running

START_S = 240.0
STOP_S = 60.0


@contextlib.contextmanager
def running_stack(data_dir: Path) -> Iterator[Running]:
    """A running stack on a free port; stopped in order when the block ends.

    Raises:
        DemoFailed: It did not start, or did not stop cleanly.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "up.log"
    guardian = Guardian()  # stops it should we be killed
    process = _start(data_dir, log)
    guardian.tell("+", process.pid)
    try:
        yield _wait_until_up(process, data_dir, log)
    finally:
        status = _stop(process)
        guardian.tell("-", process.pid)
        guardian.close()
    if status != 0:
        raise DemoFailed(f"`fimlora up` did not stop cleanly:\n{_tail(log)}")


def _start(data_dir: Path, log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "fimlora_client.cli", "up", "--port", "0"]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*command, "--data-dir", str(data_dir)],
            # A server of the user's own is none of our business: ours is embedded.
            env={name: value for name, value in os.environ.items() if name != "REDIS_URL"},
            stdout=file,
            stderr=subprocess.STDOUT,
            # Its own session: Ctrl-C reaches only us, and we stop it in order.
            start_new_session=True,
        )


def _wait_until_up(process: "subprocess.Popen[bytes]", data_dir: Path, log: Path) -> Running:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        running = find_running(data_dir)
        if running and running.pid == process.pid:
            return running
        if process.poll() is not None:
            raise DemoFailed(f"`fimlora up` ended with {process.returncode}:\n{_tail(log)}")
        time.sleep(0.05)
    raise DemoFailed(f"`fimlora up` is not ready after {START_S:g} s:\n{_tail(log)}")


def _stop(process: "subprocess.Popen[bytes]") -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its guardian clears up the children
        return process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
