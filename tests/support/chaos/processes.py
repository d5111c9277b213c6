"""Processes that are kept running as a supervisor would, except while a fault holds them down."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path

RESTART_AFTER_S = 0.5
TICK_S = 0.05


class Kept:
    """One process, restarted when it ends.

    Attributes:
        deaths: Exit statuses of ends that nobody asked for.
    """

    def __init__(
        self, name: str, command: list[str], *, log: Path, env: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = log
        self.deaths: list[int] = []
        self._command = command
        self._env = {**os.environ, **env}
        self._is_asked = False
        self._is_held = False
        self._ended_at: float | None = None
        self._lock = threading.RLock()
        self.start()

    def start(self) -> None:
        """Start it, if it is not running."""
        with self._lock:
            self._is_held = False
            if self._ended_at is None and hasattr(self, "process") and self.is_running:
                return
            with self.log.open("ab") as output:
                self.process = subprocess.Popen(
                    self._command, env=self._env, stdout=output, stderr=output
                )
            self._is_asked, self._ended_at = False, None

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    @property
    def children(self) -> list[int]:
        """Processes that it has started."""
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            return [int(pid) for pid in task.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):  # it ended before, or meanwhile
            return []

    def end(self, number: signal.Signals, *, hold: bool = False) -> None:
        """End it by a signal, and hold it down if it is not to come back by itself."""
        with self._lock:
            self._is_asked, self._is_held = True, hold
            self.process.send_signal(number)

    def send(self, number: signal.Signals) -> None:
        """Send a signal that does not end it."""
        self.process.send_signal(number)

    def keep(self) -> None:
        """Look after it: called again and again."""
        with self._lock:
            if self.is_running:
                return
            now = time.monotonic()
            if self._ended_at is None:
                self._ended_at = now
                if not self._is_asked:
                    self.deaths.append(self.process.returncode)
            if not self._is_held and now - self._ended_at >= RESTART_AFTER_S:
                self.start()

    def close(self) -> None:
        """End it for good."""
        with self._lock:
            self._is_held = self._is_asked = True
            self.process.kill()
            self.process.wait()


class Keeper:
    """Looks after processes in a thread of its own."""

    def __init__(self, *kept: Kept) -> None:
        self._kept = kept
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            for process in self._kept:
                process.keep()

    def close(self) -> None:
        """Look after nothing any more."""
        self._stop.set()
        self._thread.join()
