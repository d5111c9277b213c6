"""What a plan is held against: a uniform pattern and several random ones that spend as much.

A control that spends less than the plan says nothing about where ranks lie. So all of them
have the plan's bounds, multiples and ties, and spend what it spends: a budget in ranks
exactly, any other but for less than the cheapest step still open. That is checked, not
assumed. Nothing here imports torch.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.many import share_many
from fimlora.allocation.naming import N_DRAWS
from fimlora.allocation.units import Floats, Ranks, Units
from fimlora.errors import UnequalControls

RANDOM = (
    "random",
    *(f"random-{i}" for i in range(2, N_DRAWS + 1)),
)  # the first is what the rule gives
PLAN = "plan"  # what is solved beside the controls
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


def control_ranks(
    units: Units, names: Collection[str], limit: int, *, seed: int
) -> dict[str, dict[str, int]]:
    """Share a limit without a look at any score.

    ``uniform`` has one rank for all and the next one for as many modules as fit, spread over
    depth and kinds; where only a cheaper module still fits, that goes on, so that no more is
    left than of the plan. ``random`` and those numbered after it share by scores drawn from
    the seed and a module's name.

    Args:
        units: The modules with their bounds.
        names: Names of the modules, in the order of the results.
        limit: Ranks in total, or parameters when the units are weighted by cost.
        seed: Seed of the random patterns.

    Returns:
        Rank per module name, by control.
    """
    found = control_table(units, limit, seed=seed)
    return {
        control: dict(zip(names, ranks.tolist(), strict=True))
        for control, ranks in found.items()
    }


def control_table(
    units: Units, limit: int, *, seed: int, scores: Floats | None = None
) -> dict[str, Ranks]:
    """Do what `control_ranks` does, without a name for each rank.

    Args:
        units: The modules with their bounds.
        limit: Ranks in total, or parameters when the units are weighted by cost.
        seed: Seed of the random patterns.
        scores: Of each module, if a plan by scores is to be solved with them.

    Returns:
        Ranks in the order of the units' modules, by control; and that plan's as ``plan``.
    """
    drawn, names = units.naming.drawn(seed)[:, units.named_at], (*RANDOM, "uniform")
    vectors, ties = [drawn, np.ones((1, len(units.row_of)))], [units.ties] * len(RANDOM)
    ties.append(spread_out(units).ties)
    if scores is not None:
        names, vectors, ties = (*names, PLAN), [*vectors, scores[None]], [*ties, units.ties]
    ranks = share_many(units, np.concatenate(vectors), limit, ties=np.stack(ties))
    return dict(zip(names, ranks, strict=True))


def spread_out(units: Units) -> Units:
    """The same units, of which an equal claim is settled evenly instead of by name.

    Kinds (names but for the indices in them) take turns, each as often as it has members. Within a
    kind, members are numbered by depth and come in the order of the fraction of their number
    times the golden ratio, each kind from another start: however many come first, they are
    spread evenly over kinds and depth.

    Args:
        units: The units.

    Returns:
        Units that solvers settle ties of in that order.
    """
    order, sizes = units.naming.by_kind(units.first)
    rows, turns = [], []
    ends = np.cumsum(sizes).tolist()
    for i, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        n = end - start
        rows.append(order[start:end][_scattered(n, start=i * 2**64 // len(ends))])
        turns.append((2 * np.arange(n) + 1) / n)
    # Sorting is stable: kinds whose turn it is at once come in the order of their names.
    return replace(
        units, ties=np.concatenate(rows)[np.argsort(np.concatenate(turns), kind="stable")]
    )


def _scattered(n: int, *, start: int) -> NDArray[np.intp]:
    """Numbers below n in an order of which any beginning is spread evenly over all."""
    turn = np.uint64(start) + np.arange(n, dtype=np.uint64) * _GOLDEN  # modulo 2^64
    return np.argsort(turn)  # the factor is odd, so that no two are equal


def check_spending(units: Units, limit: int, patterns: Mapping[str, Mapping[str, int]]) -> None:
    """See that several ways to spend a limit can be compared.

    Args:
        units: The modules with their bounds.
        limit: Ranks in total, or parameters when the units are weighted by cost.
        patterns: Rank per module name, by the name of the pattern.

    Raises:
        UnequalControls: One leaves so much that its cheapest open step would still fit, or
            spends too much; none is to be written then.
    """  # noqa: DOC502 - `check_steps` raises
    check_steps(units, limit, {name: units.steps(ranks) for name, ranks in patterns.items()})


def check_steps(units: Units, limit: int, patterns: Mapping[str, NDArray[np.intp]]) -> None:
    """Do what `check_spending` does, from the steps of each row.

    Args:
        units: The modules with their bounds.
        limit: Ranks in total, or parameters when the units are weighted by cost.
        patterns: Steps by row, by the name of the pattern.

    Raises:
        UnequalControls: As there.
    """
    limit = units.affordable(limit)
    for name, steps in patterns.items():
        left = limit - int(units.weight @ units.ladder[steps])
        is_open = steps < units.highest
        prices = (units.weight * units.step_sizes[steps])[is_open]
        cheapest = int(prices.min()) if is_open.any() else None
        if left < 0 or (cheapest is not None and left >= cheapest):
            what = "ranks" if units.in_ranks else "parameters"
            raise UnequalControls(
                f"pattern {name!r} leaves {left} of {limit} {what}, where a step of {cheapest} "
                "is open: patterns that spend unequally are not compared. This is a fault of the "
                "allocator; please report it with the budget and the bounds"
            )
