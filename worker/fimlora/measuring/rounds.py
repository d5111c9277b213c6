"""Measure until a plan is stable: in rounds, each of which doubles what was measured before.

Statistics of rounds add up to those of one run over all their batches, those of the halves too.
The null does not: a round draws its labels from its own rows alone, one run from all of them,
so it is another null of the same kind. After each round it is asked how much of a plan another draw
of as many examples would be expected to move, and no round follows once that is little enough.
What a round costs that follows in vain is at most what all before it have cost together, and
one batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from fimlora.errors import InvalidOption, NoLabelledExample
from fimlora.statistics import Statistics

FIRST_ROUND = 4  # batches
MAX_BATCHES = 64
TOLERANCE = 0.05

# Measures the batches from a first one up to another one that is no part of it.
MeasurePart = Callable[[int, int], Statistics]
# Share of what a plan spends that another draw of as many examples would move.
ExpectedMove = Callable[[Statistics], float]


class Stop(StrEnum):
    """Why no other round was measured."""

    STABLE = "stable"
    """Another draw is expected to move no more of the plan than is tolerated."""
    CAP = "cap"
    """The most batches that were allowed are measured."""
    DATA = "data"
    """There are no more batches."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """What several rounds came to.

    Attributes:
        statistics: Of all batches together.
        n_batches: Batches that were gone through.
        stopped: Why no other round followed.
        expected_move: Share of the plan that another draw of as many examples would move.
        tolerance: Up to which share a plan was to be called stable.
        max_batches: The most batches that were allowed.
    """

    statistics: Statistics
    n_batches: int
    stopped: Stop
    expected_move: float
    tolerance: float
    max_batches: int

    def provenance(self) -> dict[str, Any]:
        """Say how the number of batches came about: the same on every run."""
        return {
            "n_batches_by": {
                "used": self.n_batches,
                "stopped": self.stopped.value,
                "expected_move": round(self.expected_move, 4),
                "tolerance": self.tolerance,
                "max_batches": self.max_batches,
            }
        }


def measure_until_stable(
    measure: MeasurePart,
    expected_move: ExpectedMove,
    *,
    n_available: int,
    tolerance: float = TOLERANCE,
    max_batches: int = MAX_BATCHES,
    first_round: int = FIRST_ROUND,
    begun: tuple[Statistics, int] | None = None,
    on_round: Callable[[Statistics, int], None] | None = None,
) -> Rounds:
    """Measure 4, 8, 16 ... batches in all, until a plan from them is stable.

    A single batch that would be left for the last round belongs to the one before it: by itself
    it has no halves.

    Args:
        measure: Measures a part of the batches by whatever executor, with ``first_example``
            set to the number of examples before it. What it records must add up: no spectra.
        expected_move: Says of statistics how much of their plan another draw would move, as
            ``1 - confidence_of(...).expected_overlap``.
        n_available: How many batches there are.
        tolerance: Up to which share a plan is stable.
        max_batches: Batches to use at most.
        first_round: Batches of the first round; each other one is as large as all before it. An
            even number, or halves are other batches than those of one run.
        begun: Statistics of the first batches and their number, from an earlier run.
        on_round: Called with the statistics and the number of batches after each round.

    Returns:
        The statistics, and why they are of so many batches.

    Raises:
        InvalidOption: A number is outside what is allowed.
        NoLabelledExample: No batch holds a labelled example.
    """
    if not 0 < tolerance < 1:
        raise InvalidOption(f"tolerance={tolerance}: it must lie between 0 and 1")
    if min(max_batches, first_round, n_available) < 1:
        raise InvalidOption(
            f"max_batches={max_batches}, first_round={first_round} and the batches there are, "
            f"{n_available}, must be at least 1"
        )
    total, n_done = begun or (None, 0)
    end = min(max_batches, n_available)
    while True:
        move = expected_move(total) if total is not None else 1.0
        if total is not None and (move <= tolerance or n_done >= end):
            return Rounds(
                total, n_done, _reason(move, tolerance, n_done, max_batches), move, tolerance,
                max_batches,
            )  # fmt: skip
        if n_done >= end:
            raise NoLabelledExample("no example carries a label")
        stop = min(max(first_round, 2 * n_done), end)
        stop = end if end - stop == 1 else stop
        total, n_done = _added(total, measure, n_done, stop), stop
        if on_round is not None and total is not None:
            on_round(total, n_done)


def _reason(move: float, tolerance: float, n_done: int, max_batches: int) -> Stop:
    if move <= tolerance:
        return Stop.STABLE
    return Stop.CAP if n_done >= max_batches else Stop.DATA


def _added(
    total: Statistics | None, measure: MeasurePart, start: int, stop: int
) -> Statistics | None:
    """Measure a part and add it; one without a label adds nothing."""
    try:
        part = measure(start, stop)
    except NoLabelledExample:
        return total
    if total is None:
        return part
    # Each round says how it was carried out; the last one knows all halvings.
    return replace(total.merge(part), execution=part.execution)
