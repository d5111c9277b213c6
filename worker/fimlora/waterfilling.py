"""Bounded proportional shares in whole ranks: the solver under every allocation rule.

Symbols: ``q`` score relative to the largest one; ``w`` what one rank of a module costs;
``lo``, ``hi`` its bounds; ``P`` the limit. The *quota* of a module is its real-valued share
``clip(level * q, lo, hi)``, where the water level makes ``sum(w * quota) == P``.

Nothing here imports torch.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import mul

import numpy as np
from numpy.typing import NDArray

from fimlora.errors import InfeasibleBudget, InvalidOption, InvalidScore

Floats = NDArray[np.float64]

# Relative, so that no plan depends on the unit of the scores; an absolute floor would.
LOWEST_RELATIVE_SCORE = 2.0**-200
# Remainders closer than this are a tie: they differ by rounding, not by importance.
TIE = 2.0**-20


@dataclass(frozen=True, slots=True)
class Units:
    """What the solver gives steps to: modules, or groups tied to one rank; one row each.

    Attributes:
        members: Names of the modules.
        precedence: Place in a tie: by falling score, then by first name.
        score: Mean score of the members.
        weight: What one step costs.
        lowest: Fewest steps allowed.
        highest: Most steps allowed.
    """

    members: Sequence[tuple[str, ...]]
    precedence: NDArray[np.intp]
    score: Floats
    weight: Floats
    lowest: Floats
    highest: Floats


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

    Every module first gets the floor of its quota. What is left is handed out one step at
    a time by largest remainder; ties go to the higher score, then to the first name.

    Args:
        scores: Score per module name; finite and not negative.
        limit: What may be spent: ranks in total, or parameters when ``weights`` are costs.
        lowest: Fewest ranks per module name, at least 0.
        highest: Most ranks per module name.
        weights: What one rank of each module costs. ``None`` counts ranks, and then the
            limit is met exactly (unless tied or multiple ranks cannot add up to it);
            otherwise what stays unspent is less than the cheapest step still open, and a
            limit above what ``highest`` permits leaves every module at its highest rank.
        multiple_of: Every rank is a multiple of this.
        groups: Names of modules that must get one common rank; a group is shared to by the
            mean of its scores.

    Returns:
        Rank per module name, in the order of ``scores``.

    Raises:
        InfeasibleBudget: No ranks within the bounds meet the limit.
    """
    check_scores(scores)
    units = _units(scores, lowest, highest, weights, multiple_of, groups)
    floor = int(units.weight @ units.lowest)
    ceiling = int(units.weight @ units.highest)
    if limit < floor or (weights is None and limit > ceiling):
        what = "ranks" if weights is None else "parameters"
        raise InfeasibleBudget(
            f"{limit} {what} for {len(scores)} modules is outside the feasible interval "
            f"[{floor}, {ceiling}] of their bounds"
        )
    steps = _share(units, min(limit, ceiling))
    by_name = {
        name: count * multiple_of
        for members, count in zip(units.members, steps, strict=True)
        for name in members
    }
    return {name: by_name[name] for name in scores}


def check_scores(scores: Mapping[str, float]) -> None:
    """Refuse scores that no rule can share by.

    Raises:
        InvalidScore: A score is NaN, infinite or negative.
    """
    for name, score in scores.items():
        if not 0 <= score < math.inf:
            raise InvalidScore(
                f"the score of {name!r} is {score}; scores must be finite and not negative"
            )


def _units(
    scores: Mapping[str, float],
    lowest: Mapping[str, int],
    highest: Mapping[str, int],
    weights: Mapping[str, int] | None,
    multiple_of: int,
    groups: Iterable[Collection[str]],
) -> Units:
    """Gather modules and groups of them, counting ranks in steps of ``multiple_of``.

    Returns:
        The units in their order of precedence.

    Raises:
        InfeasibleBudget: A unit has no multiple of ``multiple_of`` within its bounds.
        InvalidOption: A group names an unknown module, or two groups share one.
    """
    grouped = [tuple(sorted(group)) for group in groups if group]
    tied = {name for group in grouped for name in group}
    if len(tied) < sum(map(len, grouped)) or not tied <= scores.keys():
        raise InvalidOption(f"groups must name each known module at most once, got {grouped}")
    alone = [name for name in scores if name not in tied]
    members = [*grouped, *zip(alone)]

    def column(
        values: Mapping[str, int] | Mapping[str, float],
        combine: Callable[[list[float]], float],
    ) -> Floats:
        of_groups = (combine([values[name] for name in group]) for group in grouped)
        return np.array([*of_groups, *map(values.__getitem__, alone)], dtype=np.float64)

    score = column(scores, _mean)
    weight = column(weights or dict.fromkeys(scores, 1), sum)
    lo, hi = column(lowest, max), column(highest, min)
    units = Units(
        members,
        _precedence(members, score),
        score,
        weight * multiple_of,
        np.ceil(lo / multiple_of),
        np.floor(hi / multiple_of),
    )
    for i in np.flatnonzero(units.lowest > units.highest):
        raise InfeasibleBudget(
            f"{', '.join(members[i])}: no multiple of {multiple_of} lies within the "
            f"bounds [{lo[i]:g}, {hi[i]:g}]"
        )
    return units


def _precedence(members: Sequence[tuple[str, ...]], score: Floats) -> NDArray[np.intp]:
    """Place of each row when rows are sorted by falling score, then by first name."""
    by_name = np.array(sorted(range(len(members)), key=members.__getitem__))
    rows = by_name[np.argsort(-score[by_name], kind="stable")]
    place = np.empty_like(rows)
    place[rows] = np.arange(len(rows))
    return place


def _mean(values: list[float]) -> float:
    """Mean that does not depend on the order; divided first, as the sum could overflow."""
    return math.fsum(value / len(values) for value in values)


def _share(units: Units, limit: int) -> list[int]:
    """Whole steps per unit, for a limit that is feasible."""
    quota = _quotas(units, limit)
    floor = np.floor(quota)
    steps: list[int] = floor.astype(int).tolist()
    weights: list[int] = units.weight.astype(int).tolist()
    left = limit - sum(map(mul, steps, weights))
    room: list[int] = (units.highest - floor).astype(int).tolist()
    remainder = np.round((quota - floor) / TIE)
    queue = np.lexsort((units.precedence, -remainder)).tolist()
    while queue := [i for i in queue if room[i] > 0 and weights[i] <= left]:
        for i in queue:
            if weights[i] <= left:
                steps[i] += 1
                room[i] -= 1
                left -= weights[i]
    return steps


def _quotas(units: Units, limit: int) -> Floats:
    """The real-valued shares, which spend the limit exactly."""
    q = _relative_scores(units.score)
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
