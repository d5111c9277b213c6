"""Start children in order, keep them running, stop them in the opposite order."""

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

from fimlora_client.stack.children import Child, Guardian, Program, RestartPolicy

TICK_S = 0.1


class Stopped(BaseException):  # not an error: somebody asked for it
    """The user or the system asked us to stop."""


class Supervisor:
    """Owns the children for as long as its ``with`` block lasts.

    Args:
        say: Told a sentence when a child dies or comes back.
        policy: When to restart and when to give up.
    """

    def __init__(
        self, *, say: Callable[[str], None], policy: RestartPolicy | None = None
    ) -> None:
        self._say = say
        self._policy = policy or RestartPolicy()
        self._children: list[Child] = []
        self._stop_requests = 0
        self._guardian = Guardian()
        self._previous: dict[signal.Signals, Any] = {}

    def start(self, program: Program) -> None:
        """Run a program; it is watched from now on."""
        self._check_stop()
        self._children.append(Child(program, self._guardian))

    def wait_for(self, ready: Callable[[], bool], *, what: str, timeout_s: float) -> None:
        """Wait until something is ready; nobody is restarted meanwhile.

        Raises:
            StackError: A child died first, or the time ran out.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            self._check_stop()
            for child in self._children:
                if not child.is_alive:
                    raise child.given_up(f"{child.exit} while starting")
            if time.monotonic() > deadline:
                raise self._children[-1].given_up(
                    f"is not ready after {timeout_s:g} s; {what} does not answer"
                )
            time.sleep(TICK_S)

    def watch(self) -> None:
        """Keep the children running until somebody asks us to stop.

        Raises:
            StackError: A child that all others need dies too often.
        """
        while True:
            self._check_stop()
            for child in self._children:
                news = child.watch(self._policy, now=time.monotonic())
                if news:
                    with suppress(OSError):  # a full disk takes no words, and ends nothing
                        self._say(news)
            time.sleep(TICK_S)

    def _check_stop(self) -> None:
        if self._stop_requests:
            raise Stopped

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_requests += 1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop the children; another signal meanwhile cuts the grace short."""
        already = self._stop_requests
        for child in reversed(self._children):
            child.stop(hurry=lambda: self._stop_requests > already)
        self._guardian.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
