"""How sure the ranks of a plan are: examples drawn again with replacement, and planned again.

A score is a mean over examples, so that another draw of as many examples has other scores and
maybe other ranks. The examples at hand stand for all others: each resample draws as many of
them with replacement, which gives every module another mean, and is planned like the plan.

Symbols: N examples, M modules, R resamples; ``e[n, m]`` the energy of example n's gradient
at module m: a score is its mean over n, times a constant of the module. Nothing here imports torch.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.planning import fits_any_scores, many_like
from fimlora.allocation.units import Floats, Ranks
from fimlora.errors import InvalidOption
from fimlora.methods.registry import METHODS
from fimlora.plan import RankPlan
from fimlora.statistics import Statistics
from fimlora.statistics.options import Passes

N_RESAMPLES = 2000
LEVEL = 0.95
# Resamples times modules, for plans that someone waits for: some 25 ms of one core.
_AT_ONCE = 1 << 17
_FEWEST = 200
# Resamples times examples, likewise: some 0.2 s.
_DRAWS = 1 << 22
# The fewest of which an interval leaves one out at each end.
_FEWEST_OF_MANY = 40
# Examples that are drawn together: some 40 MB.
_BLOCK = 1 << 20
# Energies as whole numbers of so many bits: sums of products with counts are exact then, in
# whatever order a machine adds, so that the same input gives the same bytes.
_BITS = 30
# A score that is the mean of its examples' values agrees with it up to the rounding of sums.
_SAME = 1e-3


@dataclass(frozen=True, slots=True)
class Confidence:
    """How sure a plan is, as far as the choice of examples goes.

    Attributes:
        n_examples: Examples that were measured, and that each resample has.
        n_resamples: Resamples.
        level: Share of the resamples that an interval of ranks holds.
        expected_overlap: Share of the ranks (of the parameters, at a budget in these) that a
            plan from as many other examples is expected to have where this one has them.
        n_unresolved: Modules whose interval holds more than one rank.
        standard_errors: Of the scores, in the order of the modules.
        lowest_ranks: Lower ends of the intervals, in that order.
        highest_ranks: Upper ends of the intervals.
        shares: Share of the resamples that give a module the plan's rank.
        rank_noise: Share of the ranks that lie elsewhere between the plans of two draws, at most,
            in ``level`` of all pairs: what a change of ranks has to exceed to mean anything.
        score_noise: The same of the scores, each as a share of their sum.
    """

    n_examples: int
    n_resamples: int
    level: float
    expected_overlap: float
    n_unresolved: int
    standard_errors: tuple[float, ...]
    lowest_ranks: tuple[int, ...]
    highest_ranks: tuple[int, ...]
    shares: tuple[float, ...]
    rank_noise: float
    score_noise: float

    def to_json(self) -> dict[str, Any]:
        """As plain data for a rank map: a few short numbers per module."""
        return {
            "n_examples": self.n_examples,
            "n_resamples": self.n_resamples,
            "level": self.level,
            "expected_overlap": round(self.expected_overlap, 4),
            "rank_noise": round(self.rank_noise, 4),
            "score_noise": round(self.score_noise, 4),
            "n_unresolved": self.n_unresolved,
            "standard_errors": [float(f"{error:.3g}") for error in self.standard_errors],
            "lowest_ranks": list(self.lowest_ranks),
            "highest_ranks": list(self.highest_ranks),
            "shares": [round(share, 3) for share in self.shares],
        }


def resamples_for(n_modules: int, n_examples: int) -> int:
    """How many resamples a plan is worth that someone waits for.

    Args:
        n_modules: Its modules.
        n_examples: Examples it was made of, which each resample draws as many of.

    Returns:
        2,000 up to 65 modules and 2,097 examples. Fewer the more modules there are, down to
        200, and fewer the more examples, down to 40.
    """
    by_modules = max(_FEWEST, _AT_ONCE // max(1, n_modules))
    by_examples = max(_FEWEST_OF_MANY, _DRAWS // max(1, n_examples))
    return min(N_RESAMPLES, by_modules, by_examples)


def obstacle(statistics: Statistics, plan: RankPlan) -> str | None:
    """Say why nothing is known of how sure a plan is.

    Args:
        statistics: What was measured.
        plan: The plan that was made of it.

    Returns:
        The reason as a sentence without a stop, or ``None`` where `confidence_of` has an answer.
    """
    if plan.rule in {"uniform", "random"}:
        return f"rule {plan.rule!r} looks at no score, so that no other examples would move it"
    if (method := METHODS.get(plan.method or "")) and method.passes is not Passes.BACKWARD:
        return f"method {method.name!r} looks at no gradient, of which each example has one"
    if plan.rule not in {"proportional", "layers"}:
        return f"rule {plan.rule!r} goes by more than one number per example and module"
    if any(module.experts is not None for module in plan.modules):
        return "experts are selected, and a value per example is known of all of them together"
    if not statistics.example_energies:
        return "the estimator keeps no value per example; measure with one that does"
    if statistics.n_examples < 2:
        return "one example does not show how much examples differ; measure more"
    means = _energies(statistics).mean(axis=0)
    if plan.rule == "proportional":  # its scores are those of an entry, not of a matrix
        means /= np.array([module.n_weights for module in plan.modules])
    if not np.allclose(_shares(means), _shares(_scores(plan)), rtol=_SAME, atol=0):
        return (
            "its scores are no means of a value per example; those of method fim by mean "
            "aggregation are"
        )
    if not fits_any_scores(plan):
        return "its layers are of unlike size, and others might not hold this budget"
    return None


def confidence_of(
    statistics: Statistics,
    plan: RankPlan,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Confidence:
    """Say how sure the ranks of a plan are.

    Args:
        statistics: What was measured.
        plan: The plan that was made of it by the rule ``proportional`` or ``layers``.
        n_resamples: How many times the examples are drawn again.
        seed: Seed of the draws.

    Returns:
        Standard errors, intervals of ranks, and the overlap to expect of another draw.

    Raises:
        InvalidOption: Nothing can be said, for the reason that `obstacle` gives; or the plan's
            scores do not give its ranks.
    """
    if reason := obstacle(statistics, plan):
        raise InvalidOption(f"this plan has no confidence: {reason}")
    if n_resamples < 2:
        raise InvalidOption(f"n_resamples={n_resamples}: it must be at least 2")
    planned = [plan.ranks[module.name] for module in plan.modules]
    if many_like(plan, _scores(plan)[None])[0].tolist() != planned:
        raise InvalidOption(
            "the plan's own scores give other ranks than it has: it was made or changed by "
            "something else than allocate"
        )
    energies = _energies(statistics)
    relative = resampled_means(energies, n_resamples, seed=seed)
    scores = relative * _scores(plan)
    return _summary(plan, many_like(plan, scores), scores, n_examples=len(energies))


def expected_overlap(
    ranks: Ranks, costs: NDArray[np.float64] | NDArray[np.int64] | None = None
) -> float:
    """The overlap to expect of two plans from different examples.

    Two resamples differ as two draws do, while one differs from the examples themselves by
    less: so each is compared with the next one.

    Args:
        ranks: Rank per resample and module (R M).
        costs: What one rank of each module costs (M); ``None`` counts ranks.

    Returns:
        One less the mean of `moved_share`.
    """
    weighted = ranks if costs is None else ranks * costs
    return 1 - math.fsum(_moved(weighted).tolist()) / len(ranks)


def noise(values: Ranks | Floats) -> float:
    """How far two draws are apart at most, in `LEVEL` of the pairs.

    Args:
        values: A rank or a share of the scores per resample and module (R M).

    Returns:
        The share that lies elsewhere, from 0 to 1.
    """
    moved = np.sort(_moved(values))
    return float(moved[min(len(moved) - 1, math.ceil(LEVEL * len(moved)) - 1)])


def _moved(values: Ranks | Floats) -> Floats:
    """The share that lies elsewhere between each resample and the one before (R)."""
    other = np.roll(values, 1, axis=0)
    apart, all_of_both = np.abs(values - other).sum(axis=1), (values + other).sum(axis=1)
    return np.asarray(apart / np.where(all_of_both, all_of_both, 1))


def _summary(plan: RankPlan, ranks: Ranks, scores: Floats, *, n_examples: int) -> Confidence:
    """Reduce the plans of all resamples to a few numbers per module."""
    n = len(ranks)
    in_order = np.sort(ranks, axis=0)
    cut = math.floor(n * (1 - LEVEL) / 2)
    lowest, highest = in_order[cut], in_order[n - 1 - cut]
    planned = np.array([plan.ranks[module.name] for module in plan.modules])
    costs = np.array([module.cost for module in plan.modules])
    return Confidence(
        n_examples=n_examples,
        n_resamples=n,
        level=LEVEL,
        expected_overlap=expected_overlap(ranks, None if plan.budget.unit == "rank" else costs),
        n_unresolved=int((lowest < highest).sum()),
        standard_errors=tuple(scores.std(axis=0).tolist()),
        lowest_ranks=tuple(lowest.tolist()),
        highest_ranks=tuple(highest.tolist()),
        shares=tuple((ranks == planned).mean(axis=0).tolist()),
        rank_noise=noise(ranks),
        score_noise=noise(_shares_of_each(scores)),
    )


def _energies(statistics: Statistics) -> Floats:
    """Energy per example and module (N M)."""
    return np.column_stack([statistics.example_energies[m.name] for m in statistics.modules])


def _scores(plan: RankPlan) -> Floats:
    return np.array([plan.scores[module.name] for module in plan.modules], dtype=np.float64)


def _shares(values: Floats) -> Floats:
    """Each value as a share of all: scores come in units of their own."""
    total = values.sum()
    return np.asarray(values / total if total else values)


def _shares_of_each(scores: Floats) -> Floats:
    """Scores of each resample as shares of their sum (R M)."""
    totals = scores.sum(axis=1, keepdims=True)
    return np.asarray(scores / np.where(totals, totals, 1))


def resampled_means(
    energies: Floats, n_resamples: int, *, seed: int, block: int = _BLOCK
) -> Floats:
    """Draw examples again with replacement, a block of resamples at a time.

    Args:
        energies: Energy per example and module (N M).
        n_resamples: Resamples.
        seed: Seed of the draws.
        block: Examples to draw together; a resample is not divided. It changes no result.

    Returns:
        Mean energy per resample and module, over that of all examples (R M).
    """
    n, rng = len(energies), np.random.default_rng(seed)
    largest = energies.max(axis=0)
    whole = np.rint(energies / np.where(largest, largest, 1) * 2**_BITS)
    sums = np.empty((n_resamples, energies.shape[1]))
    step = max(1, block // n)
    for start in range(0, n_resamples, step):
        part = sums[start : start + step]
        part[:] = _counts(rng, n, len(part)) @ whole
    total = whole.sum(axis=0)
    return np.asarray(sums / np.where(total, total, 1))


def _counts(rng: np.random.Generator, n: int, n_resamples: int) -> Floats:
    """How often each resample has each of n examples (R N)."""
    drawn = rng.integers(0, n, size=(n_resamples, n))
    drawn += np.arange(n_resamples)[:, None] * n
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n)
    return counts.reshape(n_resamples, n).astype(np.float64)
