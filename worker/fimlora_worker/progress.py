"""Put progress on record, and learn from the answer whether to go on.

A job is interrupted only here: between stages and between batches.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fimlora_contract.jobs import JobStatus, Progress, Stage
from fimlora_contract.reaper import DEADLINE_PASSED
from fimlora_contract.store import JobStore
from fimlora_worker.errors import CancelRequested, DeadlinePassed, ShutdownRequested

# Batches of a tiny model take a millisecond; nobody watches a bar that fast.
SHORTEST_INTERVAL_S = 0.1


@dataclass
class Reporter:
    """Speaks for one attempt.

    Attributes:
        is_draining: Whether the worker wants to shut down.
        on_alive: Called with every report.
        deadline_s: Time the attempt may take.
        due_in_s: Time that is left of the request's own deadline, if it has one.
    """

    store: JobStore
    job_id: str
    attempt: int
    is_draining: Callable[[], bool]
    on_alive: Callable[[], None]
    deadline_s: float
    due_in_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    _started: float = field(init=False)
    _stage_started: float = field(init=False)
    _reported: float = field(default=float("-inf"), init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._started = self._stage_started = self.clock()

    def enter(self, stage: Stage, *, n_batches: int = 0) -> None:
        """Enter a stage."""
        self._stage_started = self.clock()
        self._check()
        self._send(Progress(stage=stage, n_batches=n_batches))

    def on_batch(self, done: int, expected: int) -> None:
        """Note a finished batch; what this raises ends the measurement."""
        self._check()
        now = self.clock()
        if done < expected and now - self._reported < SHORTEST_INTERVAL_S:
            return
        seconds_left = None
        if done:  # a streamed model passes blocks before all batches of any are done
            per_batch_s = (now - self._stage_started) / done
            seconds_left = round(per_batch_s * (expected - done), 3)
        self._send(
            Progress(
                stage=Stage.CALIBRATING,
                batch=done,
                n_batches=expected,
                seconds_left=seconds_left,
            )
        )

    def _check(self) -> None:
        if self.is_draining():
            raise ShutdownRequested(f"attempt {self.attempt} of {self.job_id} is handed over")
        used_s = self.clock() - self._started
        if self.due_in_s is not None and used_s >= self.due_in_s:
            raise DeadlinePassed(DEADLINE_PASSED.detail)
        if used_s > self.deadline_s:
            raise DeadlinePassed(f"the job ran for {used_s:.0f} s of {self.deadline_s:g} s")

    def _send(self, progress: Progress) -> None:
        self.on_alive()
        self._reported = self.clock()
        if self.store.report(self.job_id, self.attempt, progress) is JobStatus.CANCELING:
            raise CancelRequested(f"{self.job_id} is to be canceled")
