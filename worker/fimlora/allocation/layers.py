"""The rule ``layers``: some layers share the budget evenly, no other layer is targeted.

A layer is a block of one of the model's repeated lists, named as `TargetModule.block` says; its
score is the sum of those of its target modules, unless it has one of its own. A module outside
of all blocks is in no layer and gets nothing. What is shared over the chosen layers is shared as
the uniform control shares it over all, so this rule differs from that in where alone. Beside
the usual controls there are as many layers drawn at random: they show what the choice is worth.
Nothing here imports torch.
"""

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fimlora.allocation.controls import check_spending, control_ranks, spread_out
from fimlora.allocation.proportional import share_limit
from fimlora.allocation.units import Floats, Units
from fimlora.errors import InfeasibleBudget, InvalidOption, InvalidScore
from fimlora.plan import TargetModule

RANDOM_LAYERS = ("random-layers", *(f"random-layers-{i}" for i in range(2, 6)))
# Layers may be of unlike size, so that a draw may have no room for the budget.
_TRIES = 64
_DIGITS = re.compile(r"(\d+)")
Ranks = dict[str, int]
UnitsOf = Callable[[Sequence[TargetModule], tuple[int, int]], Units]


def layers_of(modules: Iterable[TargetModule]) -> dict[str, list[TargetModule]]:
    """Sort modules into layers.

    Args:
        modules: The target modules.

    Returns:
        Those of each layer, by the name of its block, first layer first; without those that are
        in no layer.
    """
    found: dict[str, list[TargetModule]] = {}
    for module in modules:
        if module.block is not None:
            found.setdefault(module.block, []).append(module)
    return {block: found[block] for block in sorted(found, key=_depth)}


def choose_layers(
    modules: Collection[TargetModule],
    values: Mapping[str, float],
    by_layer: Mapping[str, float],
    n_layers: int | None = None,
) -> frozenset[str]:
    """Choose the layers of highest score; of equal ones the first.

    Args:
        modules: The target modules.
        values: Score per module name.
        by_layer: Score per layer, if layers have scores of their own.
        n_layers: How many; half of them by default, and at least one.

    Returns:
        Names of their blocks.

    Raises:
        InvalidOption: There is no layer, or there are fewer than asked for; or layers have
            scores of their own, and one has none.
    """
    layers = layers_of(modules)
    if not layers:
        raise InvalidOption(
            "rule 'layers' chooses among blocks, and no target module is inside one; take "
            "another method, or name other target_modules"
        )
    n = max(1, len(layers) // 2) if n_layers is None else n_layers
    if type(n) is not int or not 1 <= n <= len(layers):
        raise InvalidOption(
            f"n_layers={n!r}: it must be an integer from 1 to {len(layers)}, the number of "
            "layers with target modules"
        )
    if by_layer and (odd := sorted(layers.keys() - by_layer.keys())):
        raise InvalidOption(f"layer {odd[0]!r} has target modules and no score")
    for block, score in by_layer.items():
        _check(block, score)
    scores: Mapping[str, float | Fraction] = by_layer or _sums(layers, values)
    order = sorted(layers, key=lambda block: (-scores[block], _depth(block)))
    return frozenset(order[:n])


def n_layers_of(modules: Iterable[TargetModule], ranks: Mapping[str, int]) -> int:
    """Count the layers that ranks are in.

    Args:
        modules: The target modules.
        ranks: Rank per module name.

    Returns:
        Their number.
    """
    return len({module.block for module in modules if ranks[module.name]} - {None})


def layer_bounds(
    modules: Iterable[TargetModule],
    chosen: Collection[str],
    limit: int,
    *,
    mean: Fraction,
    in_ranks: bool,
    multiple_of: int,
    given: tuple[int | None, int | None],
) -> tuple[int, int]:
    """The bounds given, completed by the defaults.

    Args:
        modules: The target modules.
        chosen: Blocks of the chosen layers.
        limit: Ranks in total, or parameters.
        mean: The budget's mean rank over all modules.
        in_ranks: Whether the limit counts ranks.
        multiple_of: Every rank is a multiple of this.
        given: Lowest and highest rank, if given. By default the lowest is 1, and the highest is
            twice the mean, or what the chosen layers need to spend the limit.

    Returns:
        Lowest and highest rank of a module of the chosen layers.
    """
    low, high = given
    low = 1 if low is None else low
    if high is None:
        sizes = [
            (1 if in_ranks else module.cost, min(module.d_in, module.d_out))
            for module in modules
            if module.block in chosen
        ]
        high = max(1, low, math.ceil(mean * 2), _needed(sizes, limit, multiple_of))
    return low, high


def share_over_layers(
    modules: Sequence[TargetModule],
    chosen: Collection[str],
    bounds: tuple[int, int],
    limit: int,
    *,
    units_of: UnitsOf,
    seed: int,
) -> tuple[Ranks, dict[str, Ranks]]:
    """Share a limit over some layers evenly, and over all of them, and over others.

    Args:
        modules: The target modules.
        chosen: Blocks of the chosen layers.
        bounds: Lowest and highest rank of their modules; no control goes above the highest.
        limit: Ranks in total, or parameters.
        units_of: Gathers some modules within bounds.
        seed: Seed of the random controls.

    Returns:
        The ranks, and by their names controls that spend the same.

    Raises:
        InfeasibleBudget: No ranks within the bounds meet it in these layers.
    """  # noqa: DOC502 - the solvers raise
    ranks = even_ranks(modules, chosen, bounds, limit, units_of=units_of)
    inside = units_of(_inside(modules, chosen), bounds)
    spendable = inside.affordable(limit)
    check_spending(inside, spendable, {"layers": ranks})
    controls = _over_all(modules, bounds, spendable, units_of=units_of, seed=seed)
    for i, control in enumerate(RANDOM_LAYERS):
        drawn = _drawn(
            modules, len(chosen), bounds, spendable, units_of=units_of, seed=f"{seed}:{i}"
        )
        controls |= {} if drawn is None else {control: drawn}
    return ranks, controls


def even_ranks(
    modules: Sequence[TargetModule],
    chosen: Collection[str],
    bounds: tuple[int, int],
    limit: int,
    *,
    units_of: UnitsOf,
) -> Ranks:
    """Share a limit over some layers as evenly as whole ranks allow.

    Args:
        modules: The target modules.
        chosen: Blocks of the chosen layers.
        bounds: Lowest and highest rank of their modules.
        limit: Ranks in total, or parameters.
        units_of: Gathers some modules within bounds.

    Returns:
        Rank per module name; 0 outside of these layers.

    Raises:
        InfeasibleBudget: No ranks within the bounds meet it in these layers.
    """  # noqa: DOC502 - the solver raises
    inside = _inside(modules, chosen)
    claims = dict.fromkeys((module.name for module in inside), 1.0)
    shared = share_limit(spread_out(units_of(inside, bounds)), claims, limit)
    return {module.name: shared.get(module.name, 0) for module in modules}


def even_ranks_of_many(
    modules: Sequence[TargetModule],
    scores: Floats,
    n_layers: int,
    bounds: tuple[int, int],
    limit: int,
    *,
    units_of: UnitsOf,
) -> NDArray[np.int64]:
    """Choose and share for each of many score vectors, as confidence asks for thousands of plans.

    Args:
        modules: The target modules.
        scores: One score vector per row (R modules).
        n_layers: How many layers are chosen.
        bounds: Lowest and highest rank of their modules; every choice of layers fits within.
        limit: Ranks in total, or parameters.
        units_of: Gathers some modules within bounds.

    Returns:
        Rank per row and module (R modules).
    """
    layers = layers_of(modules)
    is_inside = np.array([[m.block == block for block in layers] for m in modules], np.float64)
    order = np.argsort(-(scores @ is_inside), axis=1, kind="stable")[:, :n_layers]
    choices, which = np.unique(np.sort(order, axis=1), axis=0, return_inverse=True)
    blocks, names = list(layers), [module.name for module in modules]
    ranks = []
    for choice in choices:
        chosen = {blocks[i] for i in choice}
        shared = even_ranks(modules, chosen, bounds, limit, units_of=units_of)
        ranks.append([shared[name] for name in names])
    return np.array(ranks, dtype=np.int64)[which.reshape(-1)]


def every_choice_fits(
    modules: Sequence[TargetModule],
    n_layers: int,
    bounds: tuple[int, int],
    limit: int,
    *,
    units_of: UnitsOf,
) -> bool:
    """Say whether any layers could share a limit: those of some models are of unlike size.

    Args:
        modules: The target modules.
        n_layers: How many layers are chosen.
        bounds: Lowest and highest rank of their modules.
        limit: Ranks in total, or parameters.
        units_of: Gathers some modules within bounds.

    Returns:
        Whether even those with least room have enough, and those that ask for most not too much.
    """
    every = [units_of(inside, bounds) for inside in layers_of(modules).values()]
    floors = sorted(int(units.weight @ units.lowest) for units in every)
    rooms = sorted(int(units.weight @ units.highest) for units in every)
    has_room = limit <= sum(rooms[:n_layers]) or not every[0].in_ranks
    return has_room and sum(floors[len(floors) - n_layers :]) <= limit


def groups_inside(
    groups: Iterable[tuple[str, ...]],
    modules: Iterable[TargetModule],
    some: Iterable[TargetModule],
) -> list[tuple[str, ...]]:
    """Keep the groups of some layers.

    Args:
        groups: Names of modules that must get one common rank.
        modules: All modules.
        some: Those of these layers.

    Returns:
        The groups, but for those of other layers.

    Raises:
        InvalidOption: A group ties modules of two layers, of which one may get nothing.
    """
    blocks = {module.name: module.block for module in modules}
    others = blocks.keys() - {module.name for module in some}
    for group in groups:
        if len({blocks[name] for name in group if name in blocks}) > 1:
            raise InvalidOption(
                f"a group ties {', '.join(map(repr, sorted(group)[:3]))} of more than one layer, "
                "and rule 'layers' may choose one of them alone; tie modules of one layer"
            )
    return [group for group in groups if not others.issuperset(group)]


def _inside(
    modules: Iterable[TargetModule], chosen: Collection[str]
) -> tuple[TargetModule, ...]:
    return tuple(module for module in modules if module.block in chosen)


def _over_all(
    modules: Sequence[TargetModule],
    bounds: tuple[int, int],
    limit: int,
    *,
    units_of: UnitsOf,
    seed: int,
) -> dict[str, Ranks]:
    """The controls of every rule: over all modules, which the limit may not give a rank each."""
    names = [module.name for module in modules]
    for low in (1, 0):
        units = units_of(modules, (low, bounds[1]))
        if low == 0 or limit >= int(units.weight @ units.lowest):
            break
    controls = control_ranks(units, names, limit, seed=seed)
    check_spending(units, limit, controls)
    return controls


def _drawn(
    modules: Sequence[TargetModule],
    n: int,
    bounds: tuple[int, int],
    limit: int,
    *,
    units_of: UnitsOf,
    seed: str,
) -> Ranks | None:
    """Layers drawn at random that have room for a limit; ``None`` where a few draws found none."""
    blocks = list(layers_of(modules))
    for turn in range(_TRIES):
        order = sorted(blocks, key=lambda block: _digest(f"{seed}:{turn}:{block}"))
        units = units_of(_inside(modules, order[:n]), bounds)
        try:
            if units.affordable(limit) < limit:  # less room than the chosen layers have
                continue
        except InfeasibleBudget:
            continue
        ranks = even_ranks(modules, order[:n], bounds, limit, units_of=units_of)
        check_spending(units, limit, {"random-layers": ranks})
        return ranks
    return None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _needed(sizes: Collection[tuple[int, int]], limit: int, step: int) -> int:
    """The lowest ceiling at which modules of some costs and sizes can spend a limit."""
    low, high = 1, max(1, max(size for _, size in sizes) // step)
    while low < high:
        middle = (low + high) // 2
        if sum(cost * min(size // step, middle) for cost, size in sizes) * step >= limit:
            high = middle
        else:
            low = middle + 1
    return low * step


def _sums(
    layers: Mapping[str, Collection[TargetModule]], values: Mapping[str, float]
) -> dict[str, Fraction]:
    """Score of each layer, exactly: no sum rounds two layers to one score, or overflows."""
    for inside in layers.values():
        for module in inside:
            _check(module.name, values[module.name])
    return {
        block: sum((Fraction(values[module.name]) for module in inside), Fraction(0))
        for block, inside in layers.items()
    }


def _check(name: str, score: float) -> None:
    """Refuse what is no score.

    Raises:
        InvalidScore: It is NaN, infinite or negative.
    """
    if not 0 <= score < math.inf:
        raise InvalidScore(f"the score of {name!r} is {score!r}: it must be finite, at least 0")


def _depth(block: str) -> tuple[str | int, ...]:
    """What blocks are sorted by: texts and numbers take turns, so that they compare."""
    return tuple(int(part) if i % 2 else part for i, part in enumerate(_DIGITS.split(block)))
