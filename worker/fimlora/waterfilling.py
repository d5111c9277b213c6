"""Bounded proportional shares in whole ranks: the solver under every allocation rule.

Symbols: ``q`` score relative to the largest one; ``w`` what one rank of a module costs;
``lo``, ``hi`` its bounds; ``P`` the limit. The *quota* of a module is its real-valued share
``clip(level * q, lo, hi)``, where the water level makes ``sum(w * quota) == P``.

Nothing here imports torch.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
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
    """What the solver gives steps to: groups of modules, then single modules; one row each.

    Attributes:
        groups: Names of the modules tied to one rank, by row.
        alone: Names of the other modules, in the rows below.
        by_name: The rows in the order of their names.
        weight: What one step costs.
        lowest: Fewest steps allowed.
        highest: Most steps allowed.
        step: Ranks in a step.
        in_ranks: Whether weights count ranks, so that a limit can be met exactly.
    """

    groups: tuple[tuple[str, ...], ...]
    alone: tuple[str, ...]
    by_name: NDArray[np.intp]
    weight: Floats
    lowest: Floats
    highest: Floats
    step: int
    in_ranks: bool

    def below(self, rank: int) -> "Units":
        """The same under a lower ceiling, which no floor gives way to."""
        highest = np.minimum(self.highest, max(rank // self.step, 0))
        return replace(self, highest=np.maximum(highest, self.lowest))

    def affordable(self, limit: int) -> int:
        """See that the bounds can meet a limit.

        Returns:
            The limit, or what the bounds permit at most where that is less.

        Raises:
            InfeasibleBudget: No ranks within the bounds meet it.
        """
        floor = int(self.weight @ self.lowest)
        ceiling = int(self.weight @ self.highest)
        if limit < floor or (self.in_ranks and limit > ceiling):
            what = "ranks" if self.in_ranks else "parameters"
            n_modules = sum(map(len, self.groups)) + len(self.alone)
            raise InfeasibleBudget(
                f"{limit} {what} for {n_modules} modules is outside the feasible interval "
                f"[{floor}, {ceiling}] of their bounds",
                interval=(floor, ceiling),
            )
        return min(limit, ceiling)

    def ranks(self, steps: list[int], names: Iterable[str]) -> dict[str, int]:
        """Rank per module name, in the order of the names, from steps per row."""
        ranks = dict.fromkeys(names, 0)
        for group, count in zip(self.groups, steps, strict=False):
            ranks.update(dict.fromkeys(group, count * self.step))
        counts = steps[len(self.groups) :]
        ranks.update((n, k * self.step) for n, k in zip(self.alone, counts, strict=True))
        return ranks


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


def gather_units(
    names: Collection[str],
    *,
    lowest: Mapping[str, int],
    highest: Mapping[str, int],
    weights: Mapping[str, int] | None = None,
    multiple_of: int = 1,
    groups: Iterable[Collection[str]] = (),
) -> Units:
    """Gather modules and groups of them, counting ranks in steps of ``multiple_of``.

    Args:
        names: Names of the modules.
        lowest: Fewest ranks per module name.
        highest: Most ranks per module name.
        weights: What one rank of each module costs; ``None`` counts ranks.
        multiple_of: Every rank is a multiple of this.
        groups: Names of modules that must get one common rank.

    Returns:
        The units, for any scores and any limit.

    Raises:
        InfeasibleBudget: A unit has no multiple of ``multiple_of`` within its bounds.
        InvalidOption: A group names an unknown module, or two groups share one.
    """
    grouped = tuple(tuple(sorted(group)) for group in groups if group)
    tied = {name for group in grouped for name in group}
    if len(tied) < sum(map(len, grouped)) or not tied <= set(names):
        raise InvalidOption(f"groups must name each known module at most once, got {grouped}")
    alone = tuple(name for name in names if name not in tied)
    first_names = [*(group[0] for group in grouped), *alone]
    lo = _column(lowest, grouped, alone, max)
    hi = _column(highest, grouped, alone, min)
    units = Units(
        grouped,
        alone,
        np.array(sorted(range(len(first_names)), key=first_names.__getitem__)),
        _column(weights or dict.fromkeys(names, 1), grouped, alone, sum) * multiple_of,
        np.ceil(lo / multiple_of),
        np.floor(hi / multiple_of),
        multiple_of,
        weights is None,
    )
    for i in np.flatnonzero(units.lowest > units.highest):
        raise InfeasibleBudget(
            f"{first_names[i]}: no multiple of {multiple_of} lies within the bounds "
            f"[{lo[i]:g}, {hi[i]:g}]"
        )
    return units


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
    score = _column(scores, units.groups, units.alone, _mean)
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


def _column(
    values: Mapping[str, int] | Mapping[str, float],
    groups: Iterable[tuple[str, ...]],
    alone: Iterable[str],
    combine: Callable[[list[float]], float],
) -> Floats:
    """One number per unit: its module's, or its members' combined."""
    of_groups = (combine([values[name] for name in group]) for group in groups)
    return np.array([*of_groups, *map(values.__getitem__, alone)], dtype=np.float64)


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
    # Sorting is stable: by name, then by score, then by remainder.
    by_score = units.by_name[np.argsort(-score[units.by_name], kind="stable")]
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
