"""What every rule gives ranks to: modules, alone or tied, with their bounds and costs.

Nothing here imports torch.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fimlora.errors import InfeasibleBudget, InvalidOption

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Units:
    """What the solver gives steps to: groups of modules, then single modules; one row each.

    Attributes:
        groups: Names of the modules tied to one rank, by row.
        alone: Names of the other modules, in the rows below.
        ties: The rows in the order in which equal claims are settled: that of their names.
        weight: What one step costs.
        lowest: Fewest steps allowed.
        highest: Most steps allowed.
        step: Ranks in a step.
        in_ranks: Whether weights count ranks, so that a limit can be met exactly.
    """

    groups: tuple[tuple[str, ...], ...]
    alone: tuple[str, ...]
    ties: NDArray[np.intp]
    weight: Floats
    lowest: Floats
    highest: Floats
    step: int
    in_ranks: bool

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

    def steps(self, ranks: Mapping[str, int]) -> NDArray[np.intp]:
        """Steps per row, from the rank of each module: the other way round than `ranks`."""
        first_names = [*(group[0] for group in self.groups), *self.alone]
        return np.array([ranks[name] for name in first_names], dtype=np.intp) // self.step


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
    lo = column(lowest, grouped, alone, max)
    hi = column(highest, grouped, alone, min)
    units = Units(
        grouped,
        alone,
        np.array(sorted(range(len(first_names)), key=first_names.__getitem__)),
        column(weights or dict.fromkeys(names, 1), grouped, alone, sum) * multiple_of,
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


def column(
    values: Mapping[str, int] | Mapping[str, float],
    groups: Iterable[tuple[str, ...]],
    alone: Iterable[str],
    combine: Callable[[list[float]], float],
) -> Floats:
    """One number per unit: its module's, or its members' combined."""
    of_groups = (combine([values[name] for name in group]) for group in groups)
    return np.array([*of_groups, *map(values.__getitem__, alone)], dtype=np.float64)
