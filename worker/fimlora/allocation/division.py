"""A limit divided over the types of modules that asked for a share of it.

Without shares there is one part: all modules and the whole limit. With them, each type is a part
of its own, and what no type asked for goes to all other modules together. Every rule and every
control is solved part by part, so that all keep the same quotas. Nothing here imports torch.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.listed import Listed
from fimlora.allocation.many import share_many
from fimlora.allocation.tied import Tied
from fimlora.allocation.types import places_by_type, resolve_groups, tie
from fimlora.allocation.units import (
    Floats,
    Ranks,
    Rows,
    Units,
    allowed_of,
    ladder_of,
    rows_of_tied,
    units_within,
)
from fimlora.constraints import Constraints, shares_of
from fimlora.errors import InfeasibleBudget, InvalidOption
from fimlora.plan import RankPlan, TargetModule

Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """Modules that share one limit.

    Attributes:
        type: What was asked to have a share; ``None`` for all other modules, or all.
        columns: Places of the modules in the order of the plan.
        units: What the solvers give ranks to.
        limit: What they may spend together.
    """

    type: str | None
    columns: NDArray[np.intp]
    units: Units
    limit: int

    @property
    def names(self) -> list[str]:
        """Names of the modules, in the order of the plan."""
        return self.units.naming.at(self.units.named_at)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Lowest and highest rank of each module, in the order of the modules.

    A module smaller than a bound has its full rank in place of it.
    """

    lowest: Whole
    highest: Whole


@dataclass(frozen=True, slots=True)
class Gathered:
    """Modules as solvers take them, within whatever bounds and of whatever limit.

    Attributes:
        names: Their names.
        sizes: Highest rank that each could have.
        costs: What one rank of each costs; ``None`` counts ranks.
        constraints: What every rule keeps to.
        types: Places of modules by type that has a rule.
        columns: Places of the modules of each part, by its type.
        rows: What has one rank in each part.
    """

    names: NDArray[np.object_]
    sizes: Whole
    costs: Whole | None
    constraints: Constraints
    types: Mapping[str, NDArray[np.intp]]
    columns: Mapping[str | None, NDArray[np.intp]]
    rows: Mapping[str | None, Rows]

    def __len__(self) -> int:
        return len(self.sizes)

    def named(self, ranks: NDArray[np.int64]) -> dict[str, int]:
        """Rank per module name, from the ranks in the order of the modules."""
        return dict(zip(self.names.tolist(), ranks.tolist(), strict=True))

    def within(self, general: tuple[int, int], limit: int) -> tuple[Part, ...]:
        """Divide a limit within bounds.

        Args:
            general: Lowest and highest rank, but for types with their own.
            limit: Ranks in total, or parameters.

        Returns:
            The parts, whose limits add up to the limit.
        """
        units, limits = self.solvable(general, limit)
        return tuple(
            Part(entry, some, units[entry], limits[entry])
            for entry, some in self.columns.items()
        )

    def solvable(
        self, general: tuple[int, int], limit: int
    ) -> tuple[dict[str | None, Units], dict[str | None, int]]:
        """Do what `within` does, without names.

        Args:
            general: Lowest and highest rank, but for types with their own.
            limit: Ranks in total, or parameters.

        Returns:
            Units and limit of each part, by its type.
        """
        bounds = self._bounds(general)
        ladder = ladder_of(self.constraints, int(bounds.highest.max(initial=0)))
        allowed = allowed_of(self.constraints)
        units = {
            entry: units_within(
                self.rows[entry],
                bounds.lowest[some],
                bounds.highest[some],
                None if self.costs is None else self.costs[some],
                ladder=ladder,
                allowed=allowed,
            )
            for entry, some in self.columns.items()
        }
        shares = shares_of(self.constraints.per_type)
        return units, _limits(units, shares, limit) if shares else {None: limit}

    def select(self, places: NDArray[np.intp]) -> "Gathered":
        """Leave out all modules but some, as if the others were no targets.

        Args:
            places: Places of the modules that stay, rising.

        Returns:
            These, with what they were tied to and is left.
        """
        is_kept = np.zeros(len(self.sizes), dtype=bool)
        is_kept[places] = True
        place = np.cumsum(is_kept) - 1
        types = {entry: place[some[is_kept[some]]] for entry, some in self.types.items()}
        kept = {entry: is_kept[some] for entry, some in self.columns.items()}
        columns: dict[str | None, NDArray[np.intp]] = {None: np.arange(len(places))}
        if shares := shares_of(self.constraints.per_type):
            columns = _columns(len(places), {entry: types[entry] for entry in shares})
        return Gathered(
            names=self.names[places],
            sizes=self.sizes[places],
            costs=None if self.costs is None else self.costs[places],
            constraints=self.constraints,
            types=types,
            columns=columns,
            rows={entry: self.rows[entry].select(kept[entry]) for entry in columns},
        )

    def _bounds(self, general: tuple[int, int]) -> Bounds:
        """A type's own bound goes before the general one; where it has but one, the other makes room."""
        n = len(self)
        lowest, highest = (np.full(n, bound, dtype=np.int64) for bound in general)
        for entry, columns in self.types.items():
            lowest[columns], highest[columns] = self.constraints.type_bounds(entry, general)
        if self.constraints.max_lora_rank is not None:
            highest = np.minimum(highest, self.constraints.max_lora_rank)
        highest = np.minimum(highest, self.sizes)
        return Bounds(np.minimum(lowest, highest), highest)


def gather(
    modules: Sequence[TargetModule],
    constraints: Constraints,
    *,
    in_ranks: bool,
    not_targeted: Collection[str] = (),
) -> Gathered:
    """Gather what the solvers give ranks to.

    Args:
        modules: The target modules.
        constraints: What every rule keeps to.
        in_ranks: Whether limits count ranks; else each costs its parameters.
        not_targeted: Names that were meant to be targets; constraints may name them, too.

    Returns:
        It, for any bounds and limit.
    """
    listed = Listed.of(modules)
    n, names = len(listed), listed.names
    types = places_by_type(constraints, listed, not_targeted)
    types = {entry: np.sort(places) for entry, places in types.items()}
    tied: dict[str | None, Tied] = {None: tie(constraints, listed, not_targeted)}
    columns: dict[str | None, NDArray[np.intp]] = {None: np.arange(n)}
    if shares := shares_of(constraints.per_type):
        columns = _columns(n, {entry: types[entry] for entry in shares})
        tied = _groups_by_part(tied[None], names, columns)
    rows = {
        entry: rows_of_tied(tied[entry], naming=listed.naming, places=some)
        for entry, some in columns.items()
    }
    return Gathered(
        names=np.array(names, dtype=object),
        sizes=listed.sizes,
        costs=None if in_ranks else listed.costs,
        constraints=constraints,
        types=types,
        columns=columns,
        rows=rows,
    )


def gathered_of(plan: RankPlan) -> Gathered:
    """Gather the modules of a plan, as they were gathered for it.

    Args:
        plan: The plan.

    Returns:
        It, for any bounds and limit.
    """
    return gather(
        plan.modules,
        plan.constraints,
        in_ranks=plan.budget.unit == "rank",
        not_targeted=plan.not_targeted,
    )


def divide(
    modules: Sequence[TargetModule],
    general: tuple[int, int],
    limit: int,
    constraints: Constraints,
    *,
    in_ranks: bool,
    not_targeted: Collection[str] = (),
) -> tuple[Part, ...]:
    """Gather what the solvers give ranks to, and what each part of it may spend.

    Args:
        modules: The target modules.
        general: Lowest and highest rank, but for types with their own.
        limit: Ranks in total, or parameters.
        constraints: What every rule keeps to.
        in_ranks: Whether the limit counts ranks; else each costs its parameters.
        not_targeted: Names that were meant to be targets; constraints may name them, too.

    Returns:
        The parts, whose limits add up to the limit.
    """
    gathered = gather(modules, constraints, in_ranks=in_ranks, not_targeted=not_targeted)
    return gathered.within(general, limit)


def division_of(plan: RankPlan) -> tuple[Part, ...]:
    """Divide what a plan shares, as it was divided for it.

    Args:
        plan: The plan.

    Returns:
        The parts.
    """
    return gathered_of(plan).within((plan.r_min, plan.r_max), plan.limit)


def dearest_step(plan: RankPlan) -> int:
    """Say how far two ways to spend a plan's budget may be apart, in parameters.

    Args:
        plan: The plan.

    Returns:
        What the dearest step of a module or group costs; parts with limits of their own have
        such a step each.
    """
    costs = {module.name: module.cost for module in plan.modules}
    groups = resolve_groups(plan.constraints, plan.modules, plan.not_targeted)
    dearest = max(*costs.values(), *(sum(costs[name] for name in group) for group in groups), 0)
    ladder = ladder_of(plan.constraints, max(plan.r_max, *plan.ranks.values()))
    highest = np.searchsorted(ladder, max(plan.r_max, *plan.ranks.values()), side="right")
    shares = shares_of(plan.constraints.per_type)
    return dearest * int(np.diff(ladder[:highest]).max(initial=1)) * (len(shares) + 1)


def share_parts(parts: Sequence[Part], scores: Floats) -> Ranks:
    """Share the limit of each part by the rule ``proportional``, for many score vectors.

    Args:
        parts: The parts.
        scores: One score vector per row, in the order of the plan's modules (R modules).

    Returns:
        Rank per row and module (R modules).
    """
    if len(parts) == 1:
        return share_many(parts[0].units, scores, parts[0].limit)
    ranks = np.empty(scores.shape, dtype=np.int64)
    for part in parts:
        ranks[:, part.columns] = share_many(part.units, scores[:, part.columns], part.limit)
    return ranks


def _columns(
    n_modules: int, types: Mapping[str, NDArray[np.intp]]
) -> dict[str | None, NDArray[np.intp]]:
    """Places of the modules of each type that has a share, and of all others.

    Returns:
        Columns by type, ``None`` for all others.

    Raises:
        InvalidOption: A type that is to have a share has no module that was measured.
    """
    for entry, members in types.items():
        if not len(members):
            raise InvalidOption(
                f"per_type[{entry!r}] is to have a share of the budget, but none of its modules "
                "can be given ranks; leave its share out"
            )
    others = np.ones(n_modules, dtype=bool)
    others[np.concatenate(list(types.values()))] = False
    found: dict[str | None, NDArray[np.intp]] = dict(types.items())
    return {**found, None: np.flatnonzero(others)} if others.any() else found


def _groups_by_part(
    tied: Tied, names: Sequence[str], columns: Mapping[str | None, NDArray[np.intp]]
) -> dict[str | None, Tied]:
    """Sort groups by part.

    Returns:
        Groups of each, by the places among its own modules.

    Raises:
        InvalidOption: A group ties modules of two parts, which share no limit.
    """
    parts = list(columns)
    number_of = np.empty(len(names), dtype=np.intp)
    for number, some in enumerate(columns.values()):
        number_of[some] = number
    numbers, firsts = number_of[tied.places], tied.places[tied.starts]
    is_apart = numbers != np.repeat(number_of[firsts], tied.sizes)
    for group in tied.group_of[is_apart][:1].tolist():
        members = tied.take(np.array([group])).places
        both = ", ".join(
            sorted(repr(parts[i] or "all others") for i in set(number_of[members].tolist()))
        )
        raise InvalidOption(
            f"a group ties {names[members[0]]!r} to modules of another type, and per_type gives "
            f"shares of their own to {both}: tie modules of one type, or give no shares"
        )
    found: dict[str | None, Tied] = {}
    for number, (part, some) in enumerate(columns.items()):
        own = tied.take(np.flatnonzero(number_of[firsts] == number))
        found[part] = Tied(np.searchsorted(some, own.places), own.sizes)
    return found


def _limits(
    units: Mapping[str | None, Units], shares: Mapping[str, float], limit: int
) -> dict[str | None, int]:
    """What each part may spend: its share by largest remainder, so that all add up to the limit.

    Counted in the largest number that divides all prices, so that no part is left with less than
    it can use.

    Returns:
        Limit of each part.

    Raises:
        InvalidOption: The shares leave something, and no module is left for it.
    """
    asked: dict[str | None, Fraction] = {
        e: Fraction(repr(share)) for e, share in shares.items()
    }
    rest = 1 - sum(asked.values(), Fraction(0))
    if None in units:
        asked[None] = max(rest, Fraction(0))
    elif abs(rest) > Fraction(1, 10**9):
        raise InvalidOption(
            f"per_type has a share for every module, and they add up to {float(1 - rest):g}; "
            "let them add up to 1, or leave one out, which then has the rest"
        )
    grain = _grain(units.values())
    n_grains = limit // grain
    total = sum(asked.values(), Fraction(0))
    quotas = {part: share / total * n_grains for part, share in asked.items()}
    found = {part: math.floor(quota) for part, quota in quotas.items()}
    left = n_grains - sum(found.values())
    # Ties go to the first in the alphabet; those who asked for no share come last.
    turns = sorted(quotas, key=lambda p: (quotas[p] % 1 * -1, p is None, p or ""))
    for part in turns[:left]:
        found[part] += 1
    limits = {part: grain * n for part, n in found.items()}
    for part, spendable in limits.items():
        _check_part(part, units[part], spendable, limit, asked[part])
    return limits


def _grain(units: Iterable[Units]) -> int:
    """The largest number that divides every price."""
    grain = 0
    for some in units:
        for size in np.unique(some.step_sizes[:-1]).tolist():
            grain = math.gcd(grain, *(some.weight * size).astype(np.int64).tolist())
    return max(1, grain)


def _check_part(
    part: str | None, units: Units, spendable: int, limit: int, share: Fraction
) -> None:
    """Name the share that a part cannot spend, and those that it could.

    Raises:
        InfeasibleBudget: The limit of the part is outside of what its bounds permit.
    """
    low, high = units.interval
    if low <= spendable and (not units.in_ranks or spendable <= high):
        return
    what = "ranks" if units.in_ranks else "parameters"
    who = "what per_type leaves to all other modules" if part is None else f"per_type[{part!r}]"
    raise InfeasibleBudget(
        f"{who}: a share of {float(share):.6g} is {spendable} of {limit} {what}, outside the "
        f"feasible interval [{low}, {high}] of its {len(units.row_of)} modules; as a share: from "
        f"{math.ceil(low / limit * 1e6) / 1e6:g} to {math.floor(high / limit * 1e6) / 1e6:g}"
    )
