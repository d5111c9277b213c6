"""Take runs of an evaluation, one after the other, beside other workers that do the same."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fimlora_contract.jobs import RunProgress
from fimlora_jobs.runs import Runs
from fimlora_worker.evaluation.runs import RunResult, RunSpec
from fimlora_worker.evaluation.schedule import next_runs
from fimlora_worker.evaluation.settings import EvaluationSettings
from fimlora_worker.evaluation.task import Task
from fimlora_worker.evaluation.training import train
from fimlora_worker.job.memory_ladder import TRAINING
from fimlora_worker.job.progress import Reporter

log = logging.getLogger(__name__)
POLL_S = 0.5
# Between two looks at what other workers are at.
LOOK_S = 2.0


def _nothing(_: int) -> None:
    pass


@dataclass
class RunTaker:
    """Takes runs for one attempt or one hand.

    Attributes:
        runs: The evaluation's runs.
        settings: What is trained.
        reporter: Told about every step; ends the attempt by raising.
        ask_for_hands: Called now and then with the number of runs that nobody is at.
        sleep: Waits some seconds.
        clock: Seconds of a monotonic clock.
        results: Finished runs as last seen, whoever has trained them.
        n_taken: Runs that were trained here.
    """

    runs: Runs
    settings: EvaluationSettings
    reporter: Reporter
    ask_for_hands: Callable[[int], None] = _nothing
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    results: dict[str, RunResult] = field(default_factory=dict)
    n_taken: int = 0
    _claimed: Mapping[str, str] = field(default_factory=dict, init=False)
    _looked: float = field(default=float("-inf"), init=False)

    def lacking(self) -> list[RunSpec]:
        """Runs that can be trained now and are not finished."""
        stored = self.runs.results()
        self.results |= {
            key: RunResult.from_json(stored[key]) for key in stored.keys() - self.results.keys()
        }
        return next_runs(self.settings, self.results.values())

    def claim(self, lacking: Sequence[RunSpec]) -> RunSpec | None:
        """Claim one of some runs; ``None`` while others are at all of them."""
        specs = {spec.key: spec for spec in lacking}
        key = self.runs.claim(list(specs), holder=self.reporter.rq_id)
        return specs[key] if key else None

    def wait(self, lacking: Sequence[RunSpec]) -> None:
        """Wait a moment for what others are at."""
        self._tell(lacking)
        self.sleep(POLL_S)

    def take(self, spec: RunSpec, lacking: Sequence[RunSpec], task: Task, folder: Path) -> None:
        """Train a run that was claimed, and keep its result."""

        def on_step(done: int, n_steps: int) -> None:
            self._tell(lacking, **spec.to_json(), step=done, n_steps=n_steps)

        self.reporter.note_memory(TRAINING)
        try:
            result = train(spec, task, folder=folder, on_step=on_step)
        except BaseException:
            self.runs.release(self.reporter.rq_id)  # anybody may begin it anew at once
            raise
        is_new = self.runs.keep(spec.key, result.to_json())
        self.n_taken += 1
        log.info(
            "run.kept", extra={"job_id": self.runs.job_id, "run": spec.key, "is_new": is_new}
        )

    def _tell(self, lacking: Sequence[RunSpec], **at: object) -> None:
        """Look what others are at, and report; cheap to call at every step."""
        if self.clock() - self._looked >= LOOK_S:
            self._looked, self._claimed = self.clock(), self.runs.claimed()
            self.ask_for_hands(len({spec.key for spec in lacking} - self._claimed.keys()))
        done, final = len(self.results), len(self.settings.arms) * len(self.settings.seeds)
        n_runs = done + len(lacking) + (final if lacking[0].phase == "tuning" else 0)
        at_once = max(1, len(self._claimed))
        left_s = None
        if self.results:  # as long as those before, then
            mean_s = sum(r.seconds for r in self.results.values()) / done
            left_s = round((n_runs - done) * mean_s / at_once, 1)
        progress = RunProgress.model_validate(
            {"done": done, "n_runs": n_runs, "at_once": at_once, **at}
        )
        self.reporter.on_run(progress, left_s)
