"""Processes that are kept running: started, watched, restarted, stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fimlora_client.stack import guardian
from fimlora_client.stack.errors import SettingsRefused, StackError
from fimlora_contract.environment import secrets_of_others

LOG_TAIL_LINES = 12
LONGEST_LINE = 200
TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How long a child stays down after a death, and how often one that others need may die.

    Attributes:
        sound_s: Who lived this long before a death is sound: its earlier deaths are forgiven.
        max_deaths: One more in a row, and a child that all others need is given up.
    """

    sound_s: float = 60.0
    max_deaths: int = 5
    first_pause_s: float = 0.5
    max_pause_s: float = 30.0

    def pause(self, n_deaths: int) -> float:
        """Seconds to stay down after so many deaths in a row."""
        doublings = min(n_deaths - 1, 20)  # more would only overflow
        return float(min(self.first_pause_s * 2.0**doublings, self.max_pause_s))


@dataclass(frozen=True, slots=True)
class Program:
    """What to run.

    Attributes:
        name: For messages and the log file.
        command: Program and arguments.
        log: Where its output goes.
        env: Added to our own environment.
        without: Taken out of it: secrets that are others'.
        grace_s: Time it gets to end after SIGTERM.
        is_essential: Without it nothing works: it is given up when it dies too often, and
            everything ends. What is not is started again for as long as we live.
    """

    name: str
    command: list[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    grace_s: float = 10.0
    is_essential: bool = False

    def open_log(self) -> BinaryIO:
        """The log, or nothing where it cannot be written: who is needed runs without one."""
        try:
            return self.log.open("ab")
        except OSError:
            return Path(os.devnull).open("wb")

    def environment(self) -> dict[str, str]:
        """What the process sees."""
        return environment_without(self.without) | dict(self.env)

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
            command,
            stdin=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=environment_without(secrets_of_others("guardian")),
            start_new_session=True,
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
        self.n_deaths = 0  # in a row
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
            StackError: All others need it, and it dies too often.
        """
        if self.start_at is not None:
            if now < self.start_at:
                return None
            return self._start_again(policy, now=now)
        if self.is_alive:
            return None
        self._reap()
        is_sound = now - self._started_at >= policy.sound_s
        self.n_deaths = 1 if is_sound else self.n_deaths + 1
        if self.program.is_essential and self.n_deaths > policy.max_deaths:
            raise self.given_up(f"died {self.n_deaths} times in a row")
        pause = policy.pause(self.n_deaths)
        self.start_at = now + pause
        return f"{self._news()}; restarting in {pause:g} s"

    def _start_again(self, policy: RestartPolicy, *, now: float) -> str:
        try:
            self._process = self._start()
        except OSError as error:  # no memory or no process left, say
            self.n_deaths += 1
            pause = policy.pause(self.n_deaths)
            self.start_at = now + pause
            return (
                f"{self.program.name} cannot be started: {error.strerror}; "
                f"trying again in {pause:g} s"
            )
        self.start_at = None
        return f"{self.program.name} restarted as process {self.pid}"

    def _news(self) -> str:
        """What has happened; who dies again and again has said why."""
        news = f"{self.program.name} {self.exit}"
        if self.n_deaths < 2:
            return news
        last = self.program.tail().rpartition("\n")[2].strip()
        said = f", having said {last[:LONGEST_LINE]!r}" if last else ""
        return f"{news} for the {ordinal(self.n_deaths)} time in a row{said}"

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
        with self.program.open_log() as log:
            process = subprocess.Popen(
                self.program.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.program.environment(),
                # Its own group: Ctrl-C in the terminal reaches only us, and we keep the order.
                start_new_session=True,
            )
        self._started_at = time.monotonic()
        self._guardian.tell("+", process.pid)
        return process

    def _reap(self) -> None:
        """End whatever is left of the process's group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._guardian.tell("-", self.pid)


def environment_without(names: Collection[str]) -> dict[str, str]:
    """Our own environment, but for some variables."""
    return {name: text for name, text in os.environ.items() if name not in names}


def ordinal(n: int) -> str:
    """A number's place in a row: 2nd, 3rd, 11th."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}th" if 10 < n % 100 < 14 else f"{n}{ending}"


def describe_exit(code: int) -> str:
    """What an exit status means, in words."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
