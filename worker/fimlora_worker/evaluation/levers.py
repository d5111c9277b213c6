"""Which lever is larger: the learning rate, or the ranks.

The rate is measured on uniform, in tuning: how much loss the worse neighbour of its best rate
costs. The ranks are measured at each arm's best rate: the largest difference between two arms.
A neighbour that diverged costs more than any ranks.
"""

import math
from collections.abc import Sequence

from fimlora_worker.evaluation.judgement import ArmSummary, Levers
from fimlora_worker.evaluation.runs import LOSS
from fimlora_worker.evaluation.settings import UNIFORM


def find_levers(arms: Sequence[ArmSummary]) -> Levers:
    """Hold the two against each other."""
    uniform = next(arm for arm in arms if arm.name == UNIFORM)
    rate, ranks = neighbour_cost(uniform), _range_of_arms(arms)
    if rate is None or ranks is None:
        return Levers(
            rate, ranks, "Learning rate and ranks could not be held against each other."
        )
    assert uniform.best_rate is not None
    cost = "diverged" if math.isinf(rate) else f"has a loss that is higher by up to {rate:.3g}"
    sentence = (
        f"{_larger(rate, ranks)}: one step of the grid away from {uniform.best_rate:g}, uniform "
        f"{cost}; between the arms at their best rates the loss differs by at most {ranks:.3g}."
    )
    return Levers(rate, ranks, sentence)


def _larger(rate: float, ranks: float) -> str:
    if rate == ranks:
        return "Neither learning rate nor ranks were the larger lever"
    larger = "the learning rate" if rate > ranks else "the choice of ranks"
    return f"The larger lever was {larger}"


def neighbour_cost(arm: ArmSummary) -> float | None:
    """How much more loss an arm has at the worse neighbour of its best rate.

    Infinite if a neighbour diverged; ``None`` where no rate or no neighbour is known.
    """
    if arm.best_rate is None:
        return None
    losses = {each.rate: each.loss for each in arm.rates}
    rates = sorted(losses)
    place = rates.index(arm.best_rate)
    around = [losses[rate] for rate in rates[max(0, place - 1) : place + 2]]
    return max(around) - losses[arm.best_rate] if len(around) > 1 else None


def _range_of_arms(arms: Sequence[ArmSummary]) -> float | None:
    losses = [arm.metrics[LOSS].mean for arm in arms if LOSS in arm.metrics]
    return max(losses) - min(losses) if len(losses) > 1 else None
