"""The proportional rule for many score vectors at once, as confidence asks for thousands of plans.

The mathematics, and every rank, are those of `fimlora.allocation.proportional`, which solves one:
see there for the symbols. Here a row is one score vector (R of them), a column one unit (M).

Nothing here imports torch.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.proportional import LOWEST_RELATIVE_SCORE, TIE
from fimlora.allocation.units import Floats, Units
from fimlora.errors import InvalidScore

Ranks = NDArray[np.int64]
# Scores in one block: what a core's cache holds is solved twice as fast as what it does not.
_BLOCK = 1 << 15


def share_many(units: Units, scores: Floats, names: Sequence[str], limit: int) -> Ranks:
    """Share a limit over units for each of many score vectors.

    Args:
        units: The modules; a group is shared to by the mean of its scores.
        scores: One score vector per row, finite and not negative (R modules).
        names: Names of the modules, by column of the scores.
        limit: Ranks in total, or parameters when the units are weighted by cost.

    Returns:
        Rank per row and module (R modules): what `share_limit` gives for each row.

    Raises:
        InvalidScore: A score is NaN, infinite or negative.
    """
    if not np.all((scores >= 0) & (scores < math.inf)):
        raise InvalidScore("every score of every vector must be finite and not negative")
    spendable = units.affordable(limit)
    place = {name: column for column, name in enumerate(names)}
    groups = [[place[name] for name in group] for group in units.groups]
    alone = [place[name] for name in units.alone]
    ranks = np.empty(scores.shape, dtype=np.int64)
    n_rows = max(1, _BLOCK // max(1, len(place)))
    for start in range(0, len(scores), n_rows):
        some = scores[start : start + n_rows]
        steps = _share(units, _of_units(some, groups, alone), spendable) * units.step
        target = ranks[start : start + n_rows]
        for row, columns in enumerate(groups):
            target[:, columns] = steps[:, row, None]
        target[:, alone] = steps[:, len(groups) :]
    return ranks


def _of_units(scores: Floats, groups: list[list[int]], alone: list[int]) -> Floats:
    """Scores of the units; members' means as for one vector, whose rounding decides ties."""
    means = [
        [
            math.fsum(value / len(columns) for value in row)
            for row in scores[:, columns].tolist()
        ]
        for columns in groups
    ]
    return np.column_stack([*(np.array(mean) for mean in means), scores[:, alone]])


def _share(units: Units, score: Floats, limit: int) -> Ranks:
    """Whole steps per row and unit, for a limit that is feasible."""
    q = _relative_scores(score)
    quota = _clip(_water_levels(units, q, limit)[:, None] * q, units)
    steps = np.floor(quota)
    remainder = np.round((quota - steps) / TIE)
    left = limit - (steps @ units.weight)
    order = _order(units, score, remainder)
    by_turn = np.take_along_axis(steps, order, axis=1)
    _hand_out(by_turn, units.highest[order], units.weight[order], left)
    np.put_along_axis(steps, order, by_turn, axis=1)
    return steps.astype(np.int64)


def _relative_scores(score: Floats) -> Floats:
    """Scores over the largest of their row; all equal where every score is zero."""
    largest = score.max(axis=1, keepdims=True)
    is_zero = largest == 0
    q = np.maximum(score / np.where(is_zero, 1, largest), LOWEST_RELATIVE_SCORE)
    return np.asarray(np.where(is_zero, 1.0, q))


def _clip(values: Floats, units: Units) -> Floats:
    return np.asarray(np.minimum(np.maximum(values, units.lowest), units.highest))


def _water_levels(units: Units, q: Floats, limit: int) -> Floats:
    """The level of each row at which its quotas spend the limit exactly (R)."""
    w, lo, hi = units.weight, units.lowest, units.highest
    leaves_lo, meets_hi = lo / q, hi / q
    bends = np.sort(np.concatenate([leaves_lo, meets_hi], axis=1), axis=1)
    stop = _first_bends(units, q, bends, limit)[:, None]
    start = np.max(bends, axis=1, where=bends < stop, initial=-math.inf, keepdims=True)
    at_lo, at_hi = leaves_lo >= stop, meets_hi <= start
    free = ~(at_lo | at_hi)
    # Whole numbers: their sums are exact in any order.
    fixed = np.where(free, 0.0, w * np.where(at_lo, lo, hi)).sum(axis=1)
    slope = exact_sums(np.where(free, w * q, 0.0))
    has_free = free.any(axis=1)
    level = (limit - fixed) / np.where(has_free, slope, 1.0)
    level = np.minimum(np.maximum(level, start[:, 0]), stop[:, 0])
    is_bend = ~has_free | (stop == bends[:, :1])[:, 0]
    return np.asarray(np.where(is_bend, stop[:, 0], level))


def _first_bends(units: Units, q: Floats, bends: Floats, limit: int) -> Floats:
    """The first bend of each row at which the limit is spent, or else the last one (R)."""
    rows = np.arange(len(bends))
    low = np.zeros(len(bends), dtype=np.int64)
    high = np.full(len(bends), bends.shape[1] - 1)
    while (low < high).any():
        middle = (low + high) // 2
        reaches = _spending(units, q, bends[rows, middle], limit) >= limit
        high = np.where(reaches, middle, high)
        low = np.where(reaches, low, np.minimum(middle + 1, high))
    return np.asarray(bends[rows, high])


def _spending(units: Units, q: Floats, level: Floats, limit: int) -> Floats:
    """What each row spends at a level: near the limit, exactly (R)."""
    shares = units.weight * _clip(level[:, None] * q, units)
    spending = np.asarray(shares.sum(axis=1))
    for row in np.flatnonzero(np.abs(spending - limit) <= 1e-9 * limit):
        spending[row] = math.fsum(shares[row].tolist())
    return spending


def exact_sums(values: Floats) -> Floats:
    """The correctly rounded sum of each row, as `math.fsum` gives it.

    Args:
        values: Numbers that are not negative (R M).

    Returns:
        The sums (R). Sums by halves keep what rounding takes away; only where even with that
        the result is next to the middle between two floats does a row need `math.fsum`.
    """
    sums, lost = values, np.zeros(len(values))
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        a, b, odd = sums[:, :half], sums[:, half : 2 * half], sums[:, 2 * half :]
        total = a + b
        of_b = total - a
        lost += ((a - (total - of_b)) + (b - of_b)).sum(axis=1)
        sums = np.concatenate([total, odd], axis=1)
    rough = sums[:, 0]
    result = rough + lost
    off = np.abs(lost - (result - rough))
    half_step = np.spacing(result) / 2
    for middle in (half_step, half_step / 2):  # below a power of two, steps are half as wide
        for row in np.flatnonzero(np.abs(off - middle) <= 1e-6 * half_step):
            result[row] = math.fsum(values[row].tolist())
    return np.asarray(result)


def _order(units: Units, score: Floats, remainder: Floats) -> NDArray[np.intp]:
    """Turns of each row: by remainder, then by score, then in the order of ties (R M)."""
    by_score = units.ties[np.argsort(-score[:, units.ties], axis=1, kind="stable")]
    turns = np.argsort(-np.take_along_axis(remainder, by_score, 1), axis=1, kind="stable")
    return np.take_along_axis(by_score, turns, axis=1)


def _hand_out(steps: Floats, highest: Floats, weight: Floats, left: Floats) -> None:
    """Give what is left of each row, one step at a time, in turn; changes the steps.

    Whoever is too dear once will be for good, as what is left only falls: so at once all take
    their step who come before the first that no longer fits, and that one is passed over.
    """
    while True:
        waiting = (steps < highest) & (weight <= left[:, None])
        if not waiting.any():
            return
        while waiting.any():
            taken = waiting & (np.cumsum(weight * waiting, axis=1) <= left[:, None])
            steps += taken
            left -= (weight * taken).sum(axis=1)
            waiting &= ~taken & (weight <= left[:, None])
