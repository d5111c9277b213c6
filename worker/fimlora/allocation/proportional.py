"""Bounded proportional shares in whole ranks: what the rule and both controls are solved by.

Symbols: ``q`` score relative to the largest one; ``w`` what one rank of a module costs;
``lo``, ``hi`` its bounds; ``P`` the limit. The *quota* of a module is its real-valued share
``clip(level * q, lo, hi)``, where the water level makes ``sum(w * quota) == P``.

Nothing here imports torch.
"""

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from operator import mul

import numpy as np

from fimlora.allocation.units import Floats, Units, column, gather_units
from fimlora.errors import InvalidScore

# Relative, so that no plan depends on the unit of the scores; an absolute floor would.
LOWEST_RELATIVE_SCORE = 2.0**-200
# Remainders closer than this are a tie: they differ by rounding, not by importance.
TIE = 2.0**-20


def allocate_ranks(
    scores: Mapping[str, float],
    *,
    limit: int,
    lowest: Mapping[str, int],
    highest: Mapping[str, int],
    weights: Mapping[str, int] | None = None,
    multiple_of: int = 1,
    groups: Iterable[Collection[str]] = (),
) -> dict[str, int]:
    """Share a limit over modules in proportion to their scores, within bounds.

    Args:
        scores: Score per module name; finite and not negative.
        limit: What may be spent: ranks in total, or parameters when ``weights`` are costs.
        lowest: Fewest ranks per module name, at least 0.
        highest: Most ranks per module name.
        weights: What one rank of each module costs; ``None`` counts ranks.
        multiple_of: Every rank is a multiple of this.
        groups: Names of modules that must get one common rank.

    Returns:
        Rank per module name, in the order of ``scores``; see `share_limit`.
    """
    units = gather_units(
        scores,
        lowest=lowest,
        highest=highest,
        weights=weights,
        multiple_of=multiple_of,
        groups=groups,
    )
    return share_limit(units, scores, limit)


def share_limit(units: Units, scores: Mapping[str, float], limit: int) -> dict[str, int]:
    """Share a limit over units in proportion to their scores, within their bounds.

    Every unit first gets the floor of its quota. What is left is handed out one step at a
    time by largest remainder; ties go to the higher score, then to the first name. A limit
    in ranks is met exactly (unless tied or multiple ranks cannot add up to it). Of any
    other, less than the cheapest step still open stays unspent, and one above what the
    bounds permit leaves every unit at its highest rank.

    Args:
        units: The modules; a group is shared to by the mean of its scores.
        scores: Score per module name; finite and not negative.
        limit: Ranks in total, or parameters when the units are weighted by cost.

    Returns:
        Rank per module name, in the order of ``scores``.
    """
    _check_scores(scores)
    spendable = units.affordable(limit)
    score = column(scores, units.groups, units.alone, _mean)
    return units.ranks(_share(units, score, spendable), scores)


def _check_scores(scores: Mapping[str, float]) -> None:
    """Refuse scores that no rule can share by.

    Raises:
        InvalidScore: A score is NaN, infinite or negative.
    """
    values = np.fromiter(scores.values(), dtype=np.float64, count=len(scores))
    if not np.all((values >= 0) & (values < math.inf)):
        name = next(name for name, score in scores.items() if not 0 <= score < math.inf)
        raise InvalidScore(
            f"the score of {name!r} is {scores[name]}; scores must be finite and not negative"
        )


def _mean(values: list[float]) -> float:
    """Mean that does not depend on the order; divided first, as the sum could overflow."""
    return math.fsum(value / len(values) for value in values)


def _share(units: Units, score: Floats, limit: int) -> list[int]:
    """Whole steps per unit, for a limit that is feasible."""
    quota = _quotas(units, score, limit)
    floor = np.floor(quota)
    steps: list[int] = floor.astype(int).tolist()
    weights: list[int] = units.weight.astype(int).tolist()
    left = limit - sum(map(mul, steps, weights))
    room: list[int] = (units.highest - floor).astype(int).tolist()
    remainder = np.round((quota - floor) / TIE)
    # Sorting is stable: by the order of ties, then by score, then by remainder.
    by_score = units.ties[np.argsort(-score[units.ties], kind="stable")]
    queue = by_score[np.argsort(-remainder[by_score], kind="stable")].tolist()
    while queue := [i for i in queue if room[i] > 0 and weights[i] <= left]:
        for i in queue:
            if weights[i] <= left:
                steps[i] += 1
                room[i] -= 1
                left -= weights[i]
    return steps


def _quotas(units: Units, score: Floats, limit: int) -> Floats:
    """The real-valued shares, which spend the limit exactly."""
    q = _relative_scores(score)
    w, lo, hi = units.weight, units.lowest, units.highest
    return _clip(_water_level(q, w, lo, hi, limit) * q, lo, hi)


def _clip(values: Floats, lo: Floats, hi: Floats) -> Floats:
    """Bring values into their bounds."""
    return np.asarray(np.minimum(np.maximum(values, lo), hi))


def _relative_scores(scores: Floats) -> Floats:
    """Scores over the largest one; all equal when every score is zero."""
    largest = scores.max()
    if largest == 0:
        return np.ones_like(scores)
    return np.asarray(np.maximum(scores / largest, LOWEST_RELATIVE_SCORE))


def _water_level(q: Floats, w: Floats, lo: Floats, hi: Floats, limit: int) -> float:
    """The level at which the quotas spend the limit exactly.

    Spending is piecewise linear in the level and bends where a module leaves its lower
    bound or meets its upper one: find the stretch between two bends, then solve on it.
    Neither the order of the modules nor the machine's vector width can move a rank, as
    every sum that decides is `math.fsum`, which is correctly rounded.

    Returns:
        The level, at which ``sum(w * clip(level * q, lo, hi)) == limit``.
    """
    leaves_lo, meets_hi = lo / q, hi / q
    bends = np.unique(np.concatenate([leaves_lo, meets_hi]))

    def spending(level: float) -> float:
        shares = w * _clip(level * q, lo, hi)
        rough = float(shares.sum())
        # Far from the limit, the fast sum decides as the exact one would.
        return rough if abs(rough - limit) > 1e-9 * limit else math.fsum(shares.tolist())

    end = bisect_left(bends.tolist(), float(limit), hi=len(bends) - 1, key=spending)
    if end == 0:
        return float(bends[0])
    start, stop = float(bends[end - 1]), float(bends[end])
    at_lo, at_hi = leaves_lo >= stop, meets_hi <= start
    free = ~(at_lo | at_hi)
    if not free.any():
        return stop
    fixed = math.fsum((w * np.where(at_lo, lo, hi))[~free].tolist())
    level = (limit - fixed) / math.fsum((w * q)[free].tolist())
    return min(max(level, start), stop)
