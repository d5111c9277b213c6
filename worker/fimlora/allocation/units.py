"""What every rule gives ranks to: modules, alone or tied, with their bounds and costs.

Nothing here imports torch.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.naming import Naming
from fimlora.allocation.tied import Tied
from fimlora.constraints import Constraints
from fimlora.errors import InfeasibleBudget, InvalidOption

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Groups of modules and single ones, whatever their bounds; see `Units` for the most of it.

    Attributes:
        columns: Places of the modules, in the order of the modules they are of: row by row.
        starts: Where each row begins among them.
        row_of: The row of each module.
        naming: Names of these modules, and of more if these are some of them.
        named: Place of each module's name there.
        first: Place there of the name of each row's first module.
        ties: The rows in the order of these names.
    """

    columns: NDArray[np.intp]
    starts: NDArray[np.intp]
    row_of: NDArray[np.intp]
    naming: Naming
    named: NDArray[np.intp]
    first: NDArray[np.intp]
    ties: NDArray[np.intp]

    @classmethod
    def of(
        cls,
        columns: NDArray[np.intp],
        sizes: NDArray[np.intp],
        naming: Naming,
        named: NDArray[np.intp],
    ) -> "Rows":
        """Put rows together from the places of their modules, row by row, and their sizes.

        Returns:
            The rows.
        """
        starts = np.cumsum(sizes) - sizes
        row_of = np.empty(len(columns), dtype=np.intp)
        row_of[columns] = np.repeat(np.arange(len(sizes)), sizes)
        first = named[columns[starts]]
        return cls(columns, starts, row_of, naming, named, first, naming.by_alphabet(first))

    def select(self, is_kept: NDArray[np.bool_]) -> "Rows":
        """Leave out modules, and rows of which none is left.

        Args:
            is_kept: Of each module, whether it stays.

        Returns:
            The rows of the others, in the order of these.
        """
        kept = self.columns[is_kept[self.columns]]
        sizes = np.bincount(self.row_of[kept])
        columns = (np.cumsum(is_kept) - 1)[kept]
        return Rows.of(columns, sizes[sizes > 0], self.naming, self.named[is_kept])


@dataclass(frozen=True, slots=True)
class Units:
    """What the solvers give steps to: groups of modules and single ones, one row each.

    Steps lead from one allowed rank to the next: they are of one size where any rank, or any
    multiple, is allowed, and of several where a menu says which.

    Attributes:
        columns: Places of the modules, in the order of the modules they are of: row by row.
        starts: Where each row begins among them.
        row_of: The row of each module.
        naming: Names of the modules, and of more if these are some of them.
        named_at: Place of each module's name there.
        first: Place there of the name of each row's first module.
        ties: The rows in the order in which equal claims are settled: that of their names.
        weight: What one rank costs.
        lowest: Fewest steps allowed.
        highest: Most steps allowed.
        ladder: The allowed ranks, by steps taken; the first is 0.
        in_ranks: Whether weights count ranks, so that a limit can be met exactly.
    """

    columns: NDArray[np.intp]
    starts: NDArray[np.intp]
    row_of: NDArray[np.intp]
    naming: Naming
    named_at: NDArray[np.intp]
    first: NDArray[np.intp]
    ties: NDArray[np.intp]
    weight: Floats
    lowest: NDArray[np.intp]
    highest: NDArray[np.intp]
    ladder: Floats
    in_ranks: bool

    @property
    def floor(self) -> Floats:
        """Lowest rank of each row."""
        return self.ladder[self.lowest]

    @property
    def ceiling(self) -> Floats:
        """Highest rank of each row."""
        return self.ladder[self.highest]

    @property
    def step_sizes(self) -> Floats:
        """Ranks in the next step, by steps taken; 0 at the top of the ladder."""
        return np.append(np.diff(self.ladder), 0.0)

    @property
    def sizes(self) -> NDArray[np.intp]:
        """Modules of each row."""
        return np.diff(self.starts, append=len(self.columns))

    @property
    def is_even(self) -> bool:
        """Whether all steps are of one size."""
        return len(np.unique(np.diff(self.ladder))) < 2

    def affordable(self, limit: int) -> int:
        """See that the bounds can meet a limit.

        Returns:
            The limit, or what the bounds permit at most where that is less.

        Raises:
            InfeasibleBudget: No ranks within the bounds meet it.
        """
        low, high = self.interval
        if limit < low or (self.in_ranks and limit > high):
            what = "ranks" if self.in_ranks else "parameters"
            raise InfeasibleBudget(
                f"{limit} {what} for {len(self.row_of)} modules is outside the feasible interval "
                f"[{low}, {high}] of their bounds",
                interval=(low, high),
            )
        return min(limit, high)

    @property
    def interval(self) -> tuple[int, int]:
        """The least and the most that the bounds permit to spend."""
        return int(self.weight @ self.floor), int(self.weight @ self.ceiling)

    def scores(self, by_module: Floats) -> Floats:
        """Score per row from those of the modules, for each of many score vectors.

        A group has the mean of its members' scores, divided first as a sum could overflow, and
        summed exactly, so that the order of the members moves nothing.

        Returns:
            The scores (vectors x rows).
        """
        sizes = self.sizes
        if len(sizes) == len(self.columns):
            return by_module[:, self.columns]
        found = np.empty((len(by_module), len(sizes)))
        for size in np.unique(sizes).tolist():
            rows = np.flatnonzero(sizes == size)
            columns = self.columns[self.starts[rows][:, None] + np.arange(size)]
            parts = by_module[:, columns] / size
            found[:, rows] = exact_sums(parts.reshape(-1, size)).reshape(len(by_module), -1)
        return found

    def ranks(self, steps: NDArray[np.intp]) -> Ranks:
        """Rank per module from steps per row; either may have more dimensions before."""
        return self.ladder.astype(np.int64)[steps][..., self.row_of]

    def named(self, steps: NDArray[np.intp], names: Iterable[str]) -> dict[str, int]:
        """Rank per module name, from steps per row and the names of the modules in order."""
        return dict(zip(names, self.ranks(steps).tolist(), strict=True))

    def steps(self, ranks: Mapping[str, int]) -> NDArray[np.intp]:
        """Steps per row, from the rank of each module: the other way round than `ranks`."""
        found = map(ranks.__getitem__, self.naming.at(self.first))
        of_rows = np.fromiter(found, dtype=np.float64, count=len(self.first))
        return np.searchsorted(self.ladder, of_rows)

    def steps_of(self, ranks: Ranks) -> NDArray[np.intp]:
        """Steps per row, from the rank of each module in order."""
        return self.steps_below(ranks[self.columns[self.starts]])

    def steps_below(self, quotas: Floats | Ranks) -> NDArray[np.intp]:
        """Steps to the highest allowed ranks that are not above quotas, none of which is above all.

        Allowed ranks are whole numbers, so whole quotas are looked up: one after the other they
        would be searched for.

        Args:
            quotas: Ranks, or parts of one, in any shape; not negative.

        Returns:
            The steps, in the same shape.
        """
        top = int(self.ladder[-1])
        if quotas.size <= top:
            return np.searchsorted(self.ladder, quotas, side="right") - 1
        known = np.searchsorted(self.ladder, np.arange(top + 1), side="right") - 1
        return np.asarray(known[quotas.astype(np.intp)])


def gather_units(
    names: Collection[str],
    *,
    lowest: Mapping[str, int],
    highest: Mapping[str, int],
    weights: Mapping[str, int] | None = None,
    multiple_of: int = 1,
    rank_menu: Collection[int] = (),
    groups: Iterable[Collection[str]] = (),
) -> Units:
    """Gather modules and groups of them, by name.

    Args:
        names: Names of the modules.
        lowest: Fewest ranks per module name.
        highest: Most ranks per module name.
        weights: What one rank of each module costs; ``None`` counts ranks.
        multiple_of: Every rank is a multiple of this.
        rank_menu: The ranks that are allowed, in rising order; empty for any.
        groups: Names of modules that must get one common rank.

    Returns:
        The units, for any scores and any limit.
    """
    order = list(names)
    constraints = Constraints(multiple_of=multiple_of, rank_menu=tuple(rank_menu))
    return units_of(
        order,
        np.array([lowest[name] for name in order], dtype=np.int64),
        np.array([highest[name] for name in order], dtype=np.int64),
        None if weights is None else np.array([weights[name] for name in order]),
        ladder=ladder_of(constraints, max(map(highest.__getitem__, order), default=0)),
        allowed=allowed_of(constraints),
        groups=groups,
    )


def ladder_of(constraints: Constraints, highest: int) -> Floats:
    """List the ranks that are allowed.

    Args:
        constraints: Multiples, or a menu.
        highest: The highest rank that any module may have.

    Returns:
        The ranks, in rising order from 0.
    """
    if constraints.rank_menu:
        return np.array([0, *constraints.rank_menu], dtype=np.float64)
    return np.arange(0, highest + 1, constraints.multiple_of, dtype=np.float64)


def allowed_of(constraints: Constraints) -> str:
    """Say which ranks are allowed.

    Args:
        constraints: Multiples, or a menu.

    Returns:
        The allowed ranks in words.
    """
    if constraints.rank_menu:
        return f"the ranks {', '.join(map(str, constraints.rank_menu))} of rank_menu"
    return f"multiples of {constraints.multiple_of}"


def units_of(
    names: Sequence[str],
    lowest: NDArray[np.int64],
    highest: NDArray[np.int64],
    weights: NDArray[np.int64] | None,
    *,
    ladder: Floats,
    allowed: str,
    groups: Iterable[Collection[str]] = (),
) -> Units:
    """Gather modules and groups of them, in the order of the modules.

    Args:
        names: Names of the modules.
        lowest: Fewest ranks of each.
        highest: Most ranks of each.
        weights: What one rank of each costs; ``None`` counts ranks.
        ladder: The allowed ranks, in rising order from 0.
        allowed: The same in words.
        groups: Names of modules that must get one common rank.

    Returns:
        The units, for any scores and any limit.

    Raises:
        InfeasibleBudget: A unit has no allowed rank within its bounds.
    """  # noqa: DOC502 - `units_within` raises
    return units_within(
        rows_of(names, groups), lowest, highest, weights, ladder=ladder, allowed=allowed
    )


def units_within(
    rows: Rows,
    lowest: NDArray[np.int64],
    highest: NDArray[np.int64],
    weights: NDArray[np.int64] | None,
    *,
    ladder: Floats,
    allowed: str,
) -> Units:
    """Do what `units_of` does, with rows that are known.

    Args:
        rows: The rows.
        lowest: Fewest ranks of each module.
        highest: Most ranks of each.
        weights: What one rank of each costs; ``None`` counts ranks.
        ladder: The allowed ranks, in rising order from 0.
        allowed: The same in words.

    Returns:
        The units.

    Raises:
        InfeasibleBudget: A unit has no allowed rank within its bounds.
    """
    lo = np.maximum.reduceat(lowest[rows.columns], rows.starts)
    hi = np.minimum.reduceat(highest[rows.columns], rows.starts)
    low_steps = np.searchsorted(ladder, lo)
    high_steps = np.searchsorted(ladder, hi, side="right") - 1
    for i in np.flatnonzero(low_steps > high_steps):
        raise InfeasibleBudget(
            f"{rows.naming.at(rows.first[i : i + 1])[0]}: no allowed rank lies within the bounds [{lo[i]}, {hi[i]}]; "
            f"allowed are {allowed}"
        )
    return Units(
        columns=rows.columns,
        starts=rows.starts,
        row_of=rows.row_of,
        naming=rows.naming,
        named_at=rows.named,
        first=rows.first,
        ties=rows.ties,
        weight=np.bincount(rows.row_of, weights, minlength=len(rows.starts)).astype(np.float64),
        lowest=low_steps,
        highest=high_steps,
        ladder=ladder,
        in_ranks=weights is None,
    )


def rows_of(names: Sequence[str], groups: Iterable[Collection[str]] = ()) -> Rows:
    """Sort modules into rows.

    Args:
        names: Names of the modules.
        groups: Names of modules that must get one common rank.

    Returns:
        The rows, for any bounds.

    Raises:
        InvalidOption: A group names an unknown module, or two groups share one.
    """
    named = [list(group) for group in groups]
    place = {name: i for i, name in enumerate(names)} if named else {}
    tied = Tied.of([[place.get(name, -1) for name in group] for group in named])
    if len(tied) and (tied.places.min() < 0 or np.bincount(tied.places).max() > 1):
        grouped = [sorted(group) for group in named if group]
        raise InvalidOption(f"groups must name each known module at most once, got {grouped}")
    return rows_of_tied(tied, naming=Naming(names), places=np.arange(len(names)))


def rows_of_tied(tied: Tied, *, naming: Naming, places: NDArray[np.intp]) -> Rows:
    """Sort modules into rows, of which groups come first, each in the order of its names.

    Args:
        tied: Places of groups among these modules; none is there twice.
        naming: The names of these modules and maybe more.
        places: Where in it they are.

    Returns:
        The rows, for any bounds.
    """
    is_alone = np.ones(len(places), dtype=bool)
    is_alone[tied.places] = False
    alone = np.flatnonzero(is_alone)
    by_name = np.lexsort((naming.turns_at(places[tied.places]), tied.group_of))
    columns = np.concatenate([tied.places[by_name], alone])
    sizes = np.concatenate([tied.sizes, np.ones_like(alone)])
    return Rows.of(columns, sizes, naming, places)


def exact_sums(values: Floats) -> Floats:
    """The correctly rounded sum of each row, as `math.fsum` gives it.

    Args:
        values: Numbers that are not negative (R M).

    Returns:
        The sums (R). Sums by halves keep what rounding takes away; only where even with that
        the result is next to the middle between two floats does a row need `math.fsum`.
    """
    rough, errors = _sum_by_halves(values)
    lost = np.zeros(len(values))
    for some in errors:
        lost += some.sum(axis=1)
    result = rough + lost
    off = np.abs(lost - (result - rough))
    half_step = np.spacing(result) / 2
    is_near = np.abs(off - half_step) <= 1e-6 * half_step
    # Below a power of two, steps are half as wide.
    is_near |= np.abs(off - half_step / 2) <= 1e-6 * half_step
    rows = np.flatnonzero(is_near)
    if not len(rows):
        return np.asarray(result)
    # Of a few numbers the errors mostly add up exactly: then there is nothing more to round.
    lost_exactly, lost_of_lost = _sum_by_halves(
        np.concatenate([e[rows] for e in errors], axis=1)
    )
    result[rows] = rough[rows] + lost_exactly
    is_open = np.any([some.any(axis=1) for some in lost_of_lost], axis=0)
    for row in rows[is_open].tolist():
        result[row] = math.fsum(values[row].tolist())
    return np.asarray(result)


def _sum_by_halves(values: Floats) -> tuple[Floats, list[Floats]]:
    """Sum each row, half to half.

    Returns:
        The sums (R), and what rounding took away from each sum of two numbers: together with
        these they are exact.
    """
    sums, errors = values, [np.zeros((len(values), 1))]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        a, b, odd = sums[:, :half], sums[:, half : 2 * half], sums[:, 2 * half :]
        total = a + b
        of_b = total - a
        errors.append((a - (total - of_b)) + (b - of_b))
        sums = np.concatenate([total, odd], axis=1)
    return sums[:, 0], errors
