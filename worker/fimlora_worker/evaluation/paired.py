"""Differences between arms that ran with the same seeds, by Student's t.

Symbols: d, the differences of a metric, one per seed; n, how many; the interval is
``mean(d) +- t(n - 1) * sd(d) / sqrt(n)``. Differences that are all equal have no interval: equal
counts of right answers, from a few rows and seeds, say nothing of what other seeds would give.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
# Differences of shares of rows that are equal differ by this much at most.
ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Paired:
    """A mean difference and how sure it is.

    Attributes:
        mean: Of the differences.
        spread: Their standard deviation; zero where they are equal but for rounding.
        low: Lower end of the 95 % interval; not a number where the spread is zero.
        high: Its upper end.
        p: Probability of a mean at least as far from zero if there is no difference.
        n: Pairs.
    """

    mean: float
    spread: float
    low: float
    high: float
    p: float
    n: int

    def half_width(self, level: float) -> float:
        """Half the interval of a level; not a number where the spread is zero."""
        return _half_width(self.spread, self.n, level)

    def reach(self, level: float) -> float:
        """The largest difference, in either direction, that an interval of a level holds."""
        return abs(self.mean) + self.half_width(level)


def paired(differences: Sequence[float]) -> Paired | None:
    """Mean difference with interval; ``None`` for fewer than two pairs, which have none."""
    n = len(differences)
    if n < 2:
        return None
    d = np.asarray(differences, dtype=np.float64)
    mean = float(d.mean())
    spread = float(d.std(ddof=1)) if np.ptp(d) > ROUNDING else 0.0
    half = _half_width(spread, n, LEVEL)
    return Paired(mean, spread, mean - half, mean + half, _p_value(mean, spread, n), n)


def differences_by_seed(
    values: Mapping[int, float], reference: Mapping[int, float]
) -> list[float]:
    """Value minus reference for every seed that both have a number for."""
    both = sorted(values.keys() & reference.keys())
    pairs = [values[seed] - reference[seed] for seed in both]
    return [difference for difference in pairs if math.isfinite(difference)]


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number by Holm's method, in the order given.

    Rejecting what is at most 0.05 then rejects a true hypothesis in at most 5 % of families.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def _half_width(spread: float, n: int, level: float) -> float:
    if spread == 0:
        return math.nan
    return float(stats.t.ppf((1 + level) / 2, n - 1)) * spread / math.sqrt(n)


def _p_value(mean: float, spread: float, n: int) -> float:
    if spread == 0:  # no noise at all: the difference is what it is
        return 1.0 if abs(mean) <= ROUNDING else 0.0
    return float(2 * stats.t.sf(abs(mean) / (spread / math.sqrt(n)), n - 1))
