"""Put progress on record, and learn from the answer whether to go on.

A job is interrupted only here: between stages, between batches, and between the rows that
batches are made from.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fimlora_contract.jobs import JobStatus, Progress, RunProgress, ShardProgress, Stage
from fimlora_jobs.attempts import rq_job_id
from fimlora_jobs.reaper import DEADLINE_PASSED
from fimlora_jobs.store import JobStore
from fimlora_jobs.telemetry import AttemptTrace
from fimlora_worker.errors import CancelRequested, DeadlinePassed, ShutdownRequested

log = logging.getLogger(__name__)
# Batches of a tiny model take a millisecond; nobody watches a bar that fast.
SHORTEST_INTERVAL_S = 0.1
# Between two signs of life while nothing is finished.
SIGN_INTERVAL_S = 1.0
# Between two reports on a run: an evaluation takes hours, and keeps all its events.
RUN_INTERVAL_S = 3.0


@dataclass
class Reporter:
    """Speaks for one attempt.

    Attributes:
        is_draining: Whether the worker wants to shut down.
        on_alive: Called with every report.
        deadline_s: Time the attempt may take.
        due_in_s: Time that is left of the request's own deadline, if it has one.
        trace: Of the attempt; it has a span per stage.
    """

    store: JobStore
    job_id: str
    attempt: int
    is_draining: Callable[[], bool]
    on_alive: Callable[[], None]
    deadline_s: float
    due_in_s: float | None = None
    trace: AttemptTrace = field(default_factory=AttemptTrace)
    clock: Callable[[], float] = time.monotonic
    _started: float = field(init=False)
    _stage_started: float = field(init=False)
    _reported: float = field(default=float("-inf"), init=False)
    _asked: float = field(default=float("-inf"), init=False)
    _resumed_from: int | None = field(default=None, init=False)
    # Batches of shards that were measured before this attempt came to look.
    _n_before: int | None = field(default=None, init=False)
    _last: Progress = field(default=Progress(stage=Stage.RESOLVING), init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._started = self._stage_started = self.clock()

    @property
    def rq_id(self) -> str:
        """Id of the RQ job that this speaks for."""
        return rq_job_id(self.job_id, self.attempt)

    @property
    def has_used_half(self) -> bool:
        """Whether half of the time that the attempt may take is over."""
        return self.clock() - self._started > self.deadline_s / 2

    def enter(self, stage: Stage, *, n_batches: int = 0) -> None:
        """Enter a stage."""
        self._stage_started = self.clock()
        self._resumed_from = None
        self._check()
        self.trace.enter_stage(stage)
        self._send(Progress(stage=stage, n_batches=n_batches))

    def keep_alive(self) -> None:
        """Show that a stage goes on, and learn whether it should; cheap to call often."""
        self._check()
        if self.clock() - self._reported >= SIGN_INTERVAL_S:
            self._send(self._last)

    def wait_for(self, what: str) -> None:
        """Show what the attempt waits for, and learn whether it should; cheap to call often.

        The time that an attempt may take does not end it now: the next one gets its own.
        """
        self._check_wanted()
        waiting = self._last.model_copy(update={"waiting_for": what, "seconds_left": None})
        if waiting != self._last or self.clock() - self._reported >= SIGN_INTERVAL_S:
            self._send(waiting)

    def on_resume(self, done: int, expected: int) -> None:
        """Note that an earlier attempt had done some batches."""
        log.info("attempt.resumed", extra={"batch": done, "n_batches": expected})
        self.trace.event("resumed", batch=done, n_batches=expected)
        self._stage_started, self._resumed_from = self.clock(), done
        self._send(self._of_batches(Stage.CALIBRATING, done, expected))

    def on_batch(self, done: int, expected: int) -> None:
        """Note a finished batch; what this raises ends the measurement."""
        self._check()
        self.trace.event("batch", batch=done, n_batches=expected)
        now = self.clock()
        if done < expected and now - self._reported < SHORTEST_INTERVAL_S:
            return
        # A streamed model passes blocks before all batches of any are done.
        done_here, seconds_left = done - (self._resumed_from or 0), None
        if done_here > 0:
            per_batch_s = (now - self._stage_started) / done_here
            seconds_left = round(per_batch_s * (expected - done), 3)
        self._send(self._of_batches(self._last.stage, done, expected, seconds_left))

    def on_shards(self, shards: ShardProgress, done: int, expected: int) -> None:
        """Note where the shards of a calibration stand; cheap to call at every batch."""
        self._check()
        if self._n_before is None:
            self._n_before = done
        now, known = self.clock(), self._last
        waits_s = SHORTEST_INTERVAL_S if known.batch != done else SIGN_INTERVAL_S
        if known.shards == shards and now - self._reported < waits_s:
            return
        done_here, seconds_left = done - self._n_before, None
        if done_here > 0:
            per_batch_s = (now - self._stage_started) / done_here
            seconds_left = round(per_batch_s * (expected - done), 3)
        progress = self._of_batches(known.stage, done, expected, seconds_left)
        self._send(progress.model_copy(update={"shards": shards}))

    def on_run(self, runs: RunProgress, seconds_left: float | None) -> None:
        """Note where the runs of an evaluation stand; cheap to call at every step."""
        self._check()
        known = self._last.runs
        is_new = known is None or known.model_copy(update={"step": runs.step}) != runs
        now = self.clock()
        if is_new or now - self._reported >= RUN_INTERVAL_S:
            self._send(Progress(stage=Stage.TRAINING, runs=runs, seconds_left=seconds_left))
        elif now - self._asked >= SIGN_INTERVAL_S:
            self._ask()

    def note_memory(self, asked: str) -> None:
        """Put on record what is asked for next, should the system end the attempt for it."""
        self._obey(self.store.note_memory(self.job_id, self.attempt, asked))

    def _of_batches(
        self, stage: Stage, done: int, expected: int, seconds_left: float | None = None
    ) -> Progress:
        return Progress(
            stage=stage,
            batch=done,
            n_batches=expected,
            seconds_left=seconds_left,
            resumed_from=self._resumed_from,
        )

    def _check_wanted(self) -> None:
        if self.is_draining():
            raise ShutdownRequested(f"attempt {self.attempt} of {self.job_id} is handed over")
        if self.due_in_s is not None and self.clock() - self._started >= self.due_in_s:
            raise DeadlinePassed(DEADLINE_PASSED.detail)

    def _check(self) -> None:
        self._check_wanted()
        used_s = self.clock() - self._started
        if used_s > self.deadline_s:
            raise DeadlinePassed(f"the job ran for {used_s:.0f} s of {self.deadline_s:g} s")

    def _send(self, progress: Progress) -> None:
        self.on_alive()
        self._reported, self._last = self.clock(), progress
        self._obey(self.store.report(self.job_id, self.attempt, progress))

    def _ask(self) -> None:
        """Learn whether to go on, and leave no event behind."""
        self.on_alive()
        self._asked = self.clock()
        self._obey(self.store.renew(self.job_id, self.attempt))

    def _obey(self, status: JobStatus) -> None:
        if status is JobStatus.CANCELING:
            raise CancelRequested(f"{self.job_id} is to be canceled")
