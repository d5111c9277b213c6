"""Real workers: processes that tests start, signal and clean up."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join(str(PACKAGES / p) for p in ("clients/python", "service", "worker"))


@dataclass
class WorkerHandle:
    """A running worker.

    Attributes:
        process: The parent; RQ's side.
        log: What parent and child wrote.
    """

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def child_pid(self) -> int:
        """The warm child that is alive now."""
        pids = self.child_pids()
        assert len(pids) == 1, f"{len(pids)} children: {self.log.read_text()[-3000:]}"
        return pids[0]

    def child_pids(self) -> list[int]:
        """Processes whose parent this worker is."""
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in task.read_text().split()]

    def lines(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """Complete log lines of an event that have these fields."""
        return [
            line
            for line in log_lines(self.log)
            if line["event"] == event and fields.items() <= line.items()
        ]

    def has_logged(self, event: str, **fields: object) -> bool:
        return bool(self.lines(event, **fields))

    def count(self, event: str, **fields: object) -> int:
        return len(self.lines(event, **fields))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def running_worker(
    url: str,
    data_dir: Path,
    log: Path,
    *arguments: str,
    cwd: Path | None = None,
    **environment: str,
) -> Iterator[WorkerHandle]:
    """Start ``python -m fimlora_worker``; kill it and its child at the end."""
    settings = {
        "REDIS_URL": url, "FIMLORA_DATA_DIR": str(data_dir), "PYTHONPATH": PYTHONPATH,
        "FIMLORA_MONITOR_EVERY_S": "1", "FIMLORA_CANCEL_GRACE_S": "2", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fimlora_worker", *arguments],
            cwd=cwd,
            env={**os.environ, **settings, **environment},
            stdout=output,
            stderr=output,
        )
    try:
        yield WorkerHandle(process, log)
    finally:
        process.kill()  # the child dies with it
        process.wait()


def log_lines(log: Path) -> list[dict[str, Any]]:
    """The log of a process, which is JSON to the last complete line."""
    return [json.loads(line) for line in log.read_text().splitlines(True) if line[-1] == "\n"]


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter between opening and reading
        return False


def wait_dead(pid: int, *, timeout_s: float = 10.0) -> None:
    """Wait until a process has gone."""
    deadline = time.monotonic() + timeout_s
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)
