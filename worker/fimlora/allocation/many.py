"""Bounded proportional shares in whole ranks, for many score vectors at once.

Symbols: R score vectors, one per row; M units, one per column. ``q`` score relative to the
largest of its row; ``w`` what one rank of a unit costs; ``lo``, ``hi`` its bounds; ``P`` the
limit. The *quota* of a unit is its real-valued share ``clip(level * q, lo, hi)``, where the water
level of the row makes ``sum(w * quota) == P``. Its *floor* is the highest allowed rank below.

Neither the order of the modules nor the machine's vector width can move a rank, as every sum
that decides is correctly rounded. Nothing here imports torch.
"""

import math

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.sorting import FEW, stable_order, stable_order_of_whole
from fimlora.allocation.units import Floats, Ranks, Units, exact_sums
from fimlora.errors import InvalidScore

Steps = NDArray[np.intp]
# Relative, so that no plan depends on the unit of the scores; an absolute floor would.
LOWEST_RELATIVE_SCORE = 2.0**-200
# Remainders closer than this are a tie: they differ by rounding, not by importance.
TIE = 2.0**-20
# Scores in one block: what a core's cache holds is solved twice as fast as what it does not.
_BLOCK = 1 << 15


def share_many(units: Units, scores: Floats, limit: int, *, ties: Steps | None = None) -> Ranks:
    """Share a limit over units for each of many score vectors.

    Args:
        units: The modules; a group is shared to by the mean of its scores.
        scores: One score vector per row, finite and not negative, in the order of the units'
            modules (R modules).
        limit: Ranks in total, or parameters when the units are weighted by cost.
        ties: Of each vector, the units in the order in which its equal claims are settled (R M);
            that of the units by default.

    Returns:
        Rank per row and module (R modules).

    Raises:
        InvalidScore: A score is NaN, infinite or negative.
    """
    if not np.all((scores >= 0) & (scores < math.inf)):
        raise InvalidScore("every score of every vector must be finite and not negative")
    spendable = units.affordable(limit)
    ranks = np.empty(scores.shape, dtype=np.int64)
    n_rows = max(1, _BLOCK // max(1, scores.shape[1]))
    for start in range(0, len(scores), n_rows):
        rows = slice(start, start + n_rows)
        settled = None if ties is None else ties[rows]
        steps = share_steps(units, units.scores(scores[rows]), spendable, ties=settled)
        ranks[rows] = units.ranks(steps)
    return ranks


def share_steps(units: Units, score: Floats, limit: int, *, ties: Steps | None = None) -> Steps:
    """Steps per row and unit, for a limit that the bounds can meet.

    Args:
        units: The units.
        score: Score of each, finite and not negative (R M).
        limit: Ranks in total, or parameters when the units are weighted by cost.
        ties: As `share_many` has them.

    Returns:
        The steps (R M).
    """
    q = _relative_scores(score)
    quota = _clip(_water_levels(units, q, limit)[:, None] * q, units)
    steps = units.steps_below(quota)
    floor, size = units.ladder[steps], units.step_sizes[steps]
    remainder = np.round((quota - floor) / (np.where(size, size, 1) * TIE))
    left = limit - (floor @ units.weight)
    order = _order(units.ties if ties is None else ties, score, remainder)
    by_turn = np.take_along_axis(steps, order, axis=1)
    _hand_out(units, by_turn, units.highest[order], units.weight[order], left)
    np.put_along_axis(steps, order, by_turn, axis=1)
    return steps


def _relative_scores(score: Floats) -> Floats:
    """Scores over the largest of their row; all equal where every score is zero."""
    largest = score.max(axis=1, keepdims=True)
    is_zero = largest == 0
    q = np.maximum(score / np.where(is_zero, 1, largest), LOWEST_RELATIVE_SCORE)
    return np.asarray(np.where(is_zero, 1.0, q))


def _clip(values: Floats, units: Units) -> Floats:
    return np.asarray(np.minimum(np.maximum(values, units.floor), units.ceiling))


def _water_levels(units: Units, q: Floats, limit: int) -> Floats:
    """The level of each row at which its quotas spend the limit exactly (R).

    Spending is piecewise linear in the level and bends where a unit leaves its lower bound or
    meets its upper one: find the stretch between two bends, then solve on it.

    Returns:
        The levels.
    """
    w, lo, hi = units.weight, units.floor, units.ceiling
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
    lo, hi = units.floor, units.ceiling
    while (low < high).any():
        middle = (low + high) // 2
        reaches = _spending(units, q, bends[rows, middle], limit, lo, hi) >= limit
        high = np.where(reaches, middle, high)
        low = np.where(reaches, low, np.minimum(middle + 1, high))
    return np.asarray(bends[rows, high])


def _spending(
    units: Units, q: Floats, level: Floats, limit: int, lo: Floats, hi: Floats
) -> Floats:
    """What each row spends at a level: near the limit, exactly (R)."""
    shares = units.weight * np.minimum(np.maximum(level[:, None] * q, lo), hi)
    spending = np.asarray(shares.sum(axis=1))
    # Far from the limit, the fast sum decides as the exact one would.
    for row in np.flatnonzero(np.abs(spending - limit) <= 1e-9 * limit):
        spending[row] = math.fsum(shares[row].tolist())
    return spending


def _order(ties: Steps, score: Floats, remainder: Floats) -> Steps:
    """Turns of each row: by remainder, then by score, then in the order of ties (R M)."""
    ties = np.broadcast_to(ties, score.shape)
    if score.shape[1] >= FEW:
        return np.stack([*map(_order_of_many, ties, score, remainder)])
    by_score = np.argsort(-np.take_along_axis(score, ties, 1), axis=1, kind="stable")
    by_score = np.take_along_axis(ties, by_score, 1)
    turns = np.argsort(-np.take_along_axis(remainder, by_score, 1), axis=1, kind="stable")
    return np.take_along_axis(by_score, turns, axis=1)


def _order_of_many(ties: Steps, score: Floats, remainder: Floats) -> Steps:
    """Do what `_order` does, for one row of many units (M)."""
    by_score = ties[stable_order(-score[ties])]
    return np.asarray(by_score[stable_order_of_whole(-remainder[by_score])])


def _hand_out(units: Units, steps: Steps, highest: Steps, weight: Floats, left: Floats) -> None:
    """Give what is left of each row, one step at a time, in turn; changes the steps.

    Whoever is too dear once in a round stays so in it, as what is left only falls: so at once
    all take their step who come before the first that no longer fits, and that one is passed
    over. The next round has the price of the steps after these.
    """
    sizes = units.step_sizes
    while True:
        price = weight * sizes[steps]
        waiting = (steps < highest) & (price <= left[:, None])
        if not waiting.any():
            return
        while waiting.any():
            taken = waiting & (np.cumsum(price * waiting, axis=1) <= left[:, None])
            steps += taken
            left -= (price * taken).sum(axis=1)
            waiting &= ~taken & (price <= left[:, None])
