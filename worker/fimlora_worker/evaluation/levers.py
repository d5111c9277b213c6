"""Which lever is larger: the learning rate, or the ranks.

The rate is measured on uniform, in tuning: how far its loss at a neighbour of its best rate lies
from that at the best rate, in either direction. The best rate is the lowest one near the least loss,
so a neighbour may have less loss, and what the rate moves is no less for that. The ranks are
measured at each arm's best rate: the largest difference between two arms. A neighbour that diverged
lies farther off than any ranks move a loss.
"""

import math
from collections.abc import Sequence

from fimlora_worker.evaluation.judgement import ArmSummary, Levers
from fimlora_worker.evaluation.runs import LOSS
from fimlora_worker.evaluation.settings import UNIFORM


def find_levers(arms: Sequence[ArmSummary]) -> Levers:
    """Hold the two against each other."""
    uniform = next(arm for arm in arms if arm.name == UNIFORM)
    rate, ranks = neighbour_distance(uniform), _range_of_arms(arms)
    if rate is None or ranks is None:
        return Levers(
            rate, ranks, "Learning rate and ranks could not be held against each other."
        )
    assert uniform.best_rate is not None
    moved = "diverged" if math.isinf(rate) else f"has a loss that differs by up to {rate:.3g}"
    sentence = (
        f"{_larger(rate, ranks)}: one step of the grid away from {uniform.best_rate:g}, uniform "
        f"{moved}; between the arms at their best rates the loss differs by at most {ranks:.3g}."
    )
    return Levers(rate, ranks, sentence)


def _larger(rate: float, ranks: float) -> str:
    if rate == ranks:
        return "Neither learning rate nor ranks were the larger lever"
    larger = "the learning rate" if rate > ranks else "the choice of ranks"
    return f"The larger lever was {larger}"


def neighbour_distance(arm: ArmSummary) -> float | None:
    """How far the loss at a neighbour of an arm's best rate lies from that at the best rate.

    The farther neighbour counts. Infinite if one diverged; ``None`` where no rate or no neighbour
    is known.
    """
    if arm.best_rate is None:
        return None
    losses = {each.rate: each.loss for each in arm.rates}
    rates = sorted(losses)
    place = rates.index(arm.best_rate)
    best = losses[arm.best_rate]
    around = [losses[rate] for rate in rates[max(0, place - 1) : place + 2]]
    return max(abs(loss - best) for loss in around) if len(around) > 1 else None


def _range_of_arms(arms: Sequence[ArmSummary]) -> float | None:
    losses = [arm.metrics[LOSS].mean for arm in arms if LOSS in arm.metrics]
    return max(losses) - min(losses) if len(losses) > 1 else None
