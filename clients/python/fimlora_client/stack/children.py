"""Processes that are kept running: started, watched, restarted, stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fimlora_client.stack import guardian
from fimlora_client.stack.errors import SettingsRefused, StackError

LOG_TAIL_LINES = 12
TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often a child may die, and how long it stays down after a death.

    Attributes:
        window_s: Deaths longer ago than this are forgiven.
        max_deaths: One more within the window and we give up.
    """

    window_s: float = 60.0
    max_deaths: int = 5
    first_pause_s: float = 0.5
    max_pause_s: float = 10.0

    def pause(self, deaths: list[float], *, now: float) -> float | None:
        """Seconds to stay down after the last of these deaths; ``None`` means give up."""
        recent = sum(now - death <= self.window_s for death in deaths)
        if recent > self.max_deaths:
            return None
        return float(min(self.first_pause_s * 2.0 ** max(recent - 1, 0), self.max_pause_s))


@dataclass(frozen=True, slots=True)
class Program:
    """What to run.

    Attributes:
        name: For messages and the log file.
        command: Program and arguments.
        log: Where its output goes.
        env: Added to our own environment.
        grace_s: Time it gets to end after SIGTERM.
    """

    name: str
    command: list[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    grace_s: float = 10.0

    def tail(self) -> str:
        """The last lines of the log."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            return "\n".join(lines[-LOG_TAIL_LINES:])
        return ""


class Guardian:
    """Our end of the pipe to the process that clears up if we are killed."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", guardian.__file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
        )

    def tell(self, sign: str, pid: int) -> None:
        """Put a child on the list, or take it off."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # without it we still stop them ourselves
            self._process.stdin.write(f"{sign}{pid}\n")

    def close(self) -> None:
        """Let the guardian go; it ends by itself when its list is empty."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


class Child:
    """One program and the process that runs it at the moment."""

    def __init__(self, program: Program, guardian: Guardian) -> None:
        self.program = program
        self.deaths: list[float] = []
        self.start_at: float | None = None
        self._guardian = guardian
        self._process = self._start()

    @property
    def pid(self) -> int:
        """Id of the current process, which is also the id of its process group."""
        return self._process.pid

    def watch(self, policy: RestartPolicy, *, now: float) -> str | None:
        """Restart the process if it has died and its pause is over.

        Returns:
            A sentence when something happened.

        Raises:
            StackError: It dies too often.
        """
        if self.start_at is not None:
            if now < self.start_at:
                return None
            self.start_at, self._process = None, self._start()
            return f"{self.program.name} restarted as process {self.pid}"
        if self.is_alive:
            return None
        self._reap()
        self.deaths.append(now)
        pause = policy.pause(self.deaths, now=now)
        if pause is None:
            raise self.given_up(f"died {policy.max_deaths + 1} times in a row")
        self.start_at = now + pause
        return f"{self.program.name} {self.exit}; restarting in {pause:g} s"

    def given_up(self, what: str) -> StackError:
        """The error that shows the end of the log."""
        tail = self.program.tail()
        if self._process.poll() == os.EX_CONFIG:
            return SettingsRefused(f"{self.program.name}: {tail}")
        message = f"{self.program.name} {what}" + (f":\n{tail}" if tail else "")
        return StackError(message, f"The whole log is {self.program.log}.")

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def exit(self) -> str:
        """How the process ended, in words."""
        return describe_exit(self._process.wait())

    def stop(self, *, hurry: Callable[[], bool]) -> None:
        """Ask the process to end and wait; force it when its grace is over or we must hurry.

        SIGTERM goes to the process itself: what it started is its own to stop in order.
        """
        if self.is_alive:
            self._process.terminate()
        deadline = time.monotonic() + self.program.grace_s
        while self.is_alive and time.monotonic() < deadline and not hurry():
            time.sleep(TICK_S)
        self._reap()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.program.log.open("ab") as log:
            process = subprocess.Popen(
                self.program.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(self.program.env),
                # Its own group: Ctrl-C in the terminal reaches only us, and we keep the order.
                start_new_session=True,
            )
        self._guardian.tell("+", process.pid)
        return process

    def _reap(self) -> None:
        """End whatever is left of the process's group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._guardian.tell("-", self.pid)


def describe_exit(code: int) -> str:
    """What an exit status means, in words."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
