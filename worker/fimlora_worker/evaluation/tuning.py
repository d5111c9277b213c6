"""Which rate is an arm's best, by the tuning runs; near ties go to the lower rate.

A tuning loss rests on one run or a few, so two losses that lie nearer to each other than runs
with other seeds do are not told apart. Then the lower rate is taken: too large a rate costs far
more than too small a one, as a run that was lucky at the brink diverges with the next seed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fimlora_worker.evaluation.runs import RunResult
from fimlora_worker.evaluation.settings import EvaluationSettings

# Relative to the least loss. Single runs of the demonstration's task spread by 4 to 8 %.
NEAR = 0.02


@dataclass(frozen=True, slots=True)
class RateLoss:
    """What the tuning runs of an arm at one rate came to.

    Attributes:
        rate: The learning rate.
        loss: Mean held-out loss; infinite if a run diverged.
        n_diverged: How many did.
    """

    rate: float
    loss: float
    n_diverged: int


def rate_losses(
    arm: str, rates: Sequence[float], results: Iterable[RunResult]
) -> list[RateLoss]:
    """The losses of an arm at every rate that has tuning runs, in the order of the rates."""
    found: dict[float, list[float]] = {rate: [] for rate in rates}
    for result in results:
        spec = result.spec
        if spec.arm == arm and spec.phase == "tuning" and spec.learning_rate in found:
            found[spec.learning_rate].append(result.loss)
    return [
        RateLoss(rate, math.fsum(losses) / len(losses), sum(map(math.isinf, losses)))
        for rate, losses in found.items()
        if losses
    ]


def best_rate(losses: Sequence[RateLoss]) -> float | None:
    """The lowest rate whose loss is near the least; ``None`` where all rates diverged."""
    least = min(each.loss for each in losses)
    if math.isinf(least):
        return None
    return min(each.rate for each in losses if each.loss <= least + NEAR * abs(least))


def edge_of(losses: Sequence[RateLoss], rates: Sequence[float]) -> int:
    """Where an arm's best rate lies: -1 at the lower edge, 1 at the upper one, else 0.

    Where all diverged, a lower rate is what is lacking.
    """
    best = best_rate(losses)
    if best is None or best == rates[0]:
        return -1
    return 1 if best == rates[-1] else 0


def widened(rates: Sequence[float], edges: Iterable[int]) -> tuple[float, ...]:
    """The grid with one more rate beyond each edge that is somebody's best.

    The new rate is as far from the edge, as a ratio, as its neighbour.
    """
    edges = set(edges)
    below = (_rounded(rates[0] ** 2 / rates[1]),) if -1 in edges else ()
    above = (_rounded(rates[-1] ** 2 / rates[-2]),) if 1 in edges else ()
    return (*below, *rates, *above)


def final_grid(settings: EvaluationSettings, results: Sequence[RunResult]) -> tuple[float, ...]:
    """The rates of all tuning runs, once those of the given grid are finished."""
    grid = settings.learning_rates
    return widened(grid, (edge_of(rate_losses(a, grid, results), grid) for a in settings.arms))


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")
