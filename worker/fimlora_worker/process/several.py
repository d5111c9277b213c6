"""Several workers as children of one process: kept running, and stopped together."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType

log = logging.getLogger(__name__)
TICK_S = 0.2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
# Who lived this long before a death begins again at once.
SOUND_S = 60.0


@dataclass
class _Child:
    command: Sequence[str]
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    start_at: float = 0.0
    n_deaths: int = 0
    has_ended: bool = False


@dataclass
class Several:
    """Starts workers, starts them again when they end, and stops them all when told to.

    Attributes:
        commands: What to run, once for each worker.
        ends_by_itself: Whether one that ends in good order has done what it was started for, as
            where workers are to work off the queue; others begin again whatever their end.
        clock: Seconds of a monotonic clock.
        sleep: Waits some seconds.
    """

    commands: Sequence[Sequence[str]]
    ends_by_itself: bool = False
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _children: list[_Child] = field(default_factory=list, init=False)
    _is_stopping: bool = field(default=False, init=False)
    _refused: int | None = field(default=None, init=False)

    def run(self) -> int:
        """Run until all have ended; the exit status is that of one that cannot be set up."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        self._children = [_Child(command) for command in self.commands]
        while not all(child.has_ended for child in self._children):
            for child in self._children:
                self._look_after(child)
            self.sleep(TICK_S)
        return self._refused or os.EX_OK

    def _look_after(self, child: _Child) -> None:
        if child.has_ended:
            return
        if child.process is None:
            if self._is_stopping:
                child.has_ended = True
            elif self.clock() >= child.start_at:
                self._start(child)
            return
        status = child.process.poll()
        if status is None:
            return
        child.process = None
        if self._is_stopping or (self.ends_by_itself and status == os.EX_OK):
            child.has_ended = True
        elif status == os.EX_CONFIG:  # it has said why, and so would the others
            child.has_ended, self._refused = True, status
            self._stop(signal.SIGTERM)
        else:
            self._begin_again(child, status)

    def _start(self, child: _Child) -> None:
        child.started = self.clock()
        try:
            child.process = subprocess.Popen(child.command)
        except OSError as error:  # such as too many processes, for now
            self._begin_again(child, error.errno or os.EX_OSERR)
            return
        if self._is_stopping:  # it was asked while this one began, and has not been told
            child.process.terminate()

    def _begin_again(self, child: _Child, status: int) -> None:
        now = self.clock()
        child.n_deaths = 1 if now - child.started >= SOUND_S else child.n_deaths + 1
        pause = min(FIRST_PAUSE_S * 2.0 ** min(child.n_deaths - 1, 20), LONGEST_PAUSE_S)
        child.start_at = now + pause
        log.warning("worker.ended", extra={"status": status, "again_in_s": pause})

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        """Tell all what we were told: once to finish their jobs, twice to leave them."""
        self._stop(signal.Signals(number))

    def _stop(self, number: signal.Signals) -> None:
        self._is_stopping = True
        for child in self._children:
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(number)
