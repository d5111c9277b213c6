"""Measure a job's batches in rounds until its plan is stable, and keep what each round gave.

The sums of finished rounds lie beside those of the one at work, so that an attempt that is lost
costs no round, and as little of its last one as that of a job that has but one.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fimlora import Statistics, score
from fimlora.confidence.evidence import expected_move
from fimlora.errors import InvalidStatistics
from fimlora.measuring.rounds import Rounds, measure_until_stable
from fimlora.statistics.options import Executor
from fimlora_contract.requests import CalibrationRequest
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.calibration_data import HeadBatches, PaddedBatches
from fimlora_worker.job.head import JobHead, without_unused
from fimlora_worker.job.measurement_progress import MeasurementProgress
from fimlora_worker.job.measuring import Part, measure_model
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.solving import solve

log = logging.getLogger(__name__)
Found = TypeVar("Found")


def measure_in_rounds(
    request: CalibrationRequest,
    model: BaseModel,
    batches: PaddedBatches,
    reporter: Reporter,
    *,
    folder: Path,
    progress: MeasurementProgress,
    head_batches: HeadBatches | None = None,
    memory_kills: tuple[str, ...] = (),
) -> Rounds:
    """Measure as many of the batches as a stable plan needs; see `measure_model`.

    Args:
        request: The request.
        model: Its base model.
        batches: All batches that may be used.
        reporter: Told about every batch.
        folder: For what a streamed model keeps on disk meanwhile.
        progress: What earlier attempts have saved.
        head_batches: What its head is fitted on; ``None`` where that stays as it is.
        memory_kills: What attempts asked for that the system has ended for want of memory.

    Returns:
        The statistics, and why they are of so many batches.
    """
    head = JobHead(model, head_batches, reporter)
    kept = KeptRounds(progress.folder)
    executor: Executor | None = None
    estimator: str | None = None

    def measure(start: int, stop: int) -> Statistics:
        nonlocal executor, estimator

        def on_resume(done: int, expected: int) -> None:
            reporter.on_resume(start + done, start + expected)

        found = measure_model(
            request,
            model,
            batches.part(start, stop),
            reporter,
            folder=folder,
            progress=replace(progress, on_resume=on_resume),
            head_batches=head_batches,
            memory_kills=memory_kills,
            part=Part(start, batches.n_examples(start), head, executor, estimator),
        )
        executor = found.execution.executor if found.execution else executor
        estimator = found.estimator.value
        return found

    def rounds(begun: tuple[Statistics, int] | None) -> Rounds:
        nonlocal estimator
        estimator = begun[0].estimator.value if begun else None
        return measure_until_stable(
            measure,
            lambda statistics: _expected_move(request, statistics),
            n_available=len(batches),
            tolerance=request.calibration.tolerance,
            max_batches=request.calibration.max_batches,
            begun=begun,
            on_round=kept.keep,
        )

    found = begun_or_anew(kept, rounds)
    unused = batches.n_examples(len(batches)) - batches.n_examples(found.n_batches)
    return replace(found, statistics=without_unused(found.statistics, unused))


def _expected_move(request: CalibrationRequest, statistics: Statistics) -> float:
    allocation = request.allocation
    scores = score(statistics, allocation.method, aggregation=allocation.aggregation)
    plan = solve(request, scores)
    return expected_move(statistics, plan)


@dataclass(frozen=True, slots=True)
class KeptRounds:
    """Statistics of a job's first rounds, on disk: a file whose name has their batches.

    Attributes:
        folder: The job's folder; created when it is needed.
    """

    folder: Path

    def keep(self, statistics: Statistics, n_batches: int) -> None:
        """Save a round in place of those before it; a full disk only makes a retry longer."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            statistics.save(self._path(n_batches))
        except OSError as error:
            log.warning("rounds.not_saved", extra={"error": str(error)})
            return
        for n in self._found():
            if n < n_batches:
                self._path(n).unlink(missing_ok=True)

    def newest(self) -> tuple[Statistics, int] | None:
        """Read the last round that was saved, if any can be read."""
        for n in self._found():
            with suppress(InvalidStatistics):
                return Statistics.load(self._path(n)), n
        return None

    def forget(self) -> None:
        """Remove them all."""
        for n in self._found():
            self._path(n).unlink(missing_ok=True)

    def _found(self) -> list[int]:
        """Numbers of batches that there is a file of, the most first."""
        names = [path.name.split(".") for path in self.folder.glob("rounds.*.safetensors")]
        return sorted((int(n) for _, n, _ in names if n.isdecimal()), reverse=True)

    def _path(self, n_batches: int) -> Path:
        return self.folder / f"rounds.{n_batches}.safetensors"


def begun_or_anew(
    kept: KeptRounds, rounds: Callable[[tuple[Statistics, int] | None], Found]
) -> Found:
    """Go on from kept rounds, or without them where they are of another run.

    Args:
        kept: What is kept of an earlier attempt; forgotten if it does not fit.
        rounds: Measures, from what is kept on.

    Returns:
        What it gives.

    Raises:
        InvalidStatistics: Nothing was kept, so that measuring anew would come to the same.
    """
    begun = kept.newest()
    try:
        return rounds(begun)
    except InvalidStatistics as error:  # such as those of another device
        if begun is None:
            raise
        log.warning("rounds.refused", extra={"error": str(error)})
        kept.forget()
    return rounds(None)
