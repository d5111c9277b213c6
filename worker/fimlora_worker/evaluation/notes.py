"""What one must know to read a verdict: of single arms, of the rows, of the intervals."""

import math
from collections.abc import Iterable, Sequence

from fimlora_worker.evaluation.judgement import ArmSummary
from fimlora_worker.evaluation.runs import LOSS
from fimlora_worker.evaluation.settings import RANDOM_EXPERTS, UNIFORM


def find_notes(arms: Sequence[ArmSummary], n_tested: int | None) -> tuple[str, ...]:
    """The notes of a verdict.

    Args:
        arms: What each came to.
        n_tested: Held-out rows, where their number is known.
    """
    rows = "held-out rows" if n_tested is None else f"{n_tested} held-out rows"
    tested = (
        f"Tested on {rows}; each arm's learning rate was chosen on the same rows, which flatters "
        "all arms."
    )
    seeds = "Intervals cover the spread between seeds only, not what other rows would change."
    of_arms = (note for arm in arms for note in _notes_on(arm))
    return (*_on_experts(arms), *of_arms, *_on_edges(arms), tested, seeds)


def _on_experts(arms: Sequence[ArmSummary]) -> Iterable[str]:
    if any(arm.name == RANDOM_EXPERTS for arm in arms):
        yield (
            "Experts are selected: uniform trains all of them, random-experts as many random ones "
            "in each layer, and all other arms the selected ones, each with the same number of "
            "parameters. An expert of many that trains gets higher ranks for them."
        )


def _on_edges(arms: Sequence[ArmSummary]) -> Iterable[str]:
    """One note for all arms whose best rate has no neighbour on a side."""
    at_edge = [arm for arm in arms if arm.is_at_edge and arm.best_rate is not None]
    if len(at_edge) == 1:
        yield (
            f"The best rate of {at_edge[0].name}, {at_edge[0].best_rate:g}, is at the edge of the "
            "grid: a rate beyond it may be better."
        )
    elif at_edge:
        *named, last = [f"{arm.name} ({arm.best_rate:g})" for arm in at_edge]
        yield (
            f"The best rates of {', '.join(named)} and {last} are at the edge of the grid: rates "
            "beyond it may be better."
        )


def _notes_on(arm: ArmSummary) -> Iterable[str]:
    if arm.best_rate is None:
        rates = ", ".join(f"{each.rate:g}" for each in arm.rates)
        yield f"{arm.name} diverged at every learning rate ({rates}); it is not compared."
        return
    if arm.n_diverged:
        n_left = arm.n_final - arm.n_diverged
        means = (
            f"all differences to it rest on the other {n_left}"
            if arm.name == UNIFORM
            else "it cannot win"
        )
        yield (
            f"{arm.name} diverged in {arm.n_diverged} of {arm.n_final} final runs; these are left "
            f"out of its figures, and {means}."
        )
    if better := _lower_rate_that_may_be_better(arm):
        rate, loss = better
        yield (
            f"The final runs of {arm.name} at {arm.best_rate:g} have a mean loss of "
            f"{arm.metrics[LOSS].mean:.3g}, well above its tuning loss at {rate:g} ({loss:.3g}): "
            "its rate was chosen by a lucky run, and a difference to it is one of rates, too. "
            f"Evaluate again with learning rates that end below {arm.best_rate:g}."
        )


def _lower_rate_that_may_be_better(arm: ArmSummary) -> tuple[float, float] | None:
    """A lower rate whose tuning loss is below what the spread of the final runs explains."""
    found = arm.metrics.get(LOSS)
    if found is None or math.isnan(found.spread):
        return None
    lower = [each for each in arm.rates if arm.best_rate and each.rate < arm.best_rate]
    best = min(lower, key=lambda each: each.loss, default=None)
    if best is None or best.loss >= found.mean - found.spread:
        return None
    return best.rate, best.loss
