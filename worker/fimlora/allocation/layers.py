"""The rule ``layers``: some layers share the budget evenly, no other layer is targeted.

A layer is a block of one of the model's repeated lists, named as `TargetModule.block` says; its
score is the sum of those of its target modules, unless it has one of its own. A module outside
of all blocks is in no layer and gets nothing. What is shared over the chosen layers is shared as
the uniform control shares it over all, so this rule differs from that in where alone; ties,
menus and rules per type hold among the modules of these layers. Beside the usual controls there
are as many layers drawn at random: they show what the choice is worth. Nothing here imports torch.
"""

import hashlib
import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import partial

import numpy as np

from fimlora.allocation.controls import check_steps, control_table, spread_out
from fimlora.allocation.division import Gathered, Part, gather
from fimlora.allocation.many import share_many
from fimlora.allocation.types import resolve_groups, resolve_types
from fimlora.allocation.units import Floats, Ranks, ladder_of
from fimlora.constraints import Constraints, shares_of
from fimlora.errors import InfeasibleBudget, InvalidOption, InvalidScore
from fimlora.plan import RankPlan, TargetModule

RANDOM_LAYERS = ("random-layers", *(f"random-layers-{i}" for i in range(2, 6)))
# Layers may be of unlike size, so that a draw may have no room for the budget.
_TRIES = 64
_DIGITS = re.compile(r"(\d+)")
Named = dict[str, int]  # rank by module name
# Gathers some of the modules.
Gather = Callable[[Sequence[TargetModule]], Gathered]


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
    if by_layer:
        return frozenset(sorted(layers, key=lambda block: -by_layer[block])[:n])
    rounded, exact = _sums(layers, values)
    order = sorted(layers, key=lambda block: (-rounded[block], -exact.get(block, 0)))
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
    gather_some: Gather,
    constraints: Constraints,
    given: tuple[int | None, int | None],
) -> tuple[int, int]:
    """The bounds given, completed by the defaults.

    Args:
        modules: The target modules.
        chosen: Blocks of the chosen layers.
        limit: Ranks in total, or parameters.
        mean: The budget's mean rank over all modules.
        gather_some: Gathers some modules.
        constraints: The allowed ranks, and what a server allows.
        given: Lowest and highest rank, if given. By default the lowest is 1, and the highest is
            twice the mean, or what the chosen layers need to spend the limit.

    Returns:
        Lowest and highest rank of a module of the chosen layers.

    Raises:
        InvalidOption: The floor that was given is above what the server allows.
    """
    low, high = given
    cap = constraints.max_lora_rank
    if low is not None and cap is not None and low > cap:
        raise InvalidOption(f"r_min={low} is above max_lora_rank={cap}")
    low = 1 if low is None else low
    if high is None:
        inside = _inside(modules, chosen)
        needed = _needed(
            inside, limit, low=low, gather_some=gather_some, constraints=constraints
        )
        high = max(1, low, math.ceil(mean * 2), needed)
        high = min((rank for rank in constraints.rank_menu if rank >= high), default=high)
    return low, max(low, high if cap is None else min(high, cap))


def share_over_layers(
    modules: Sequence[TargetModule],
    chosen: Collection[str],
    bounds: tuple[int, int],
    limit: int,
    *,
    gather_some: Gather,
    freely: Gather,
    seed: int,
) -> tuple[Named, dict[str, Named]]:
    """Share a limit over some layers evenly, and over all of them, and over others.

    Args:
        modules: The target modules.
        chosen: Blocks of the chosen layers.
        bounds: Lowest and highest rank of their modules; no control goes above the highest.
        limit: Ranks in total, or parameters.
        gather_some: Gathers some modules.
        freely: The same without the floors of types, for controls that these leave no room.
        seed: Seed of the random controls.

    Returns:
        The ranks, and by their names controls that spend the same.

    Raises:
        InfeasibleBudget: No ranks within the bounds meet it in these layers.
    """  # noqa: DOC502 - the solvers raise
    parts = gather_some(_inside(modules, chosen)).within(bounds, limit)
    ranks, spendable = _even(modules, parts), _spendable(parts)
    ways = ((gather_some, 1), (freely, 1), (freely, 0))
    controls = _over_all(modules, bounds[1], spendable, ways=ways, seed=seed)
    blocks = list(layers_of(modules))
    for i, control in enumerate(RANDOM_LAYERS):
        drawn = _drawn(
            modules, blocks, len(chosen), bounds, spendable, gather_some=gather_some,
            seed=f"{seed}:{i}",
        )  # fmt: skip
        controls |= {} if drawn is None else {control: drawn}
    return ranks, controls


def even_ranks(
    modules: Sequence[TargetModule],
    chosen: Collection[str],
    bounds: tuple[int, int],
    limit: int,
    *,
    gather_some: Gather,
) -> Named:
    """Share a limit over some layers as evenly as whole ranks allow.

    Args:
        modules: The target modules.
        chosen: Blocks of the chosen layers.
        bounds: Lowest and highest rank of their modules.
        limit: Ranks in total, or parameters.
        gather_some: Gathers some modules.

    Returns:
        Rank per module name; 0 outside of these layers.

    Raises:
        InfeasibleBudget: No ranks within the bounds meet it in these layers.
    """  # noqa: DOC502 - the solver raises
    parts = gather_some(_inside(modules, chosen)).within(bounds, limit)
    return _even(modules, parts)


def _even(modules: Sequence[TargetModule], parts: Iterable[Part]) -> Named:
    """Share the limits of parts evenly; 0 for modules that are in none."""
    shared: Named = {}
    for part in parts:
        claims = np.ones((1, len(part.names)))
        ranks = share_many(spread_out(part.units), claims, part.limit)[0]
        check_steps(part.units, part.limit, {"layers": part.units.steps_of(ranks)})
        shared.update(zip(part.names, ranks.tolist(), strict=True))
    return {module.name: shared.get(module.name, 0) for module in modules}


def layers_like(
    plan: RankPlan, values: Mapping[str, float], by_layer: Mapping[str, float]
) -> Named:
    """Share what a plan by layers shares, over as many layers, by other scores.

    Args:
        plan: The plan.
        values: Score per module name.
        by_layer: Score per layer, if layers have scores of their own.

    Returns:
        Rank per module name.
    """
    chosen = choose_layers(
        plan.modules, values, by_layer, n_layers_of(plan.modules, plan.ranks)
    )
    bounds = plan.r_min, plan.r_max
    return even_ranks(plan.modules, chosen, bounds, plan.limit, gather_some=parts_for(plan))


def many_layers_like(plan: RankPlan, scores: Floats) -> Ranks:
    """Do what `layers_like` does for many score vectors, as confidence asks for thousands.

    Args:
        plan: The plan; one that `fits_any_layers`.
        scores: One score vector per row, in the order of the plan's modules (R modules).

    Returns:
        Rank per row and module (R modules).
    """
    blocks, modules = list(layers_of(plan.modules)), plan.modules
    is_inside = np.array([[m.block == block for block in blocks] for m in modules], np.float64)
    n, gather_some = n_layers_of(modules, plan.ranks), parts_for(plan)
    order = np.argsort(-(scores @ is_inside), axis=1, kind="stable")[:, :n]
    choices, which = np.unique(np.sort(order, axis=1), axis=0, return_inverse=True)
    ranks = []
    for choice in choices:
        chosen = {blocks[i] for i in choice}
        bounds = plan.r_min, plan.r_max
        shared = even_ranks(modules, chosen, bounds, plan.limit, gather_some=gather_some)
        ranks.append([shared[module.name] for module in modules])
    return np.array(ranks, dtype=np.int64)[which.reshape(-1)]


def fits_any_layers(plan: RankPlan) -> bool:
    """Say whether any layers could share a plan's limit: those of some models are of unlike size.

    Args:
        plan: A plan by layers.

    Returns:
        Whether they could. With shares per type, layers of unlike size are taken not to.
    """
    layers = layers_of(plan.modules)
    if (
        len({tuple((m.kind, m.d_in, m.d_out) for m in inside) for inside in layers.values()})
        == 1
    ):
        return True
    if shares_of(plan.constraints.per_type):
        return False
    gather_some, bounds = parts_for(plan), (plan.r_min, plan.r_max)
    every = [
        gather_some(inside).within(bounds, plan.limit)[0].units for inside in layers.values()
    ]
    n = n_layers_of(plan.modules, plan.ranks)
    floors, rooms = (sorted(some) for some in zip(*(u.interval for u in every), strict=True))
    has_room = plan.limit <= sum(rooms[:n]) or not every[0].in_ranks
    return has_room and sum(floors[len(floors) - n :]) <= plan.limit


def parts_for(plan: RankPlan) -> Gather:
    """Say how modules of a plan by layers are gathered.

    Args:
        plan: The plan.

    Returns:
        The same as `parts_by` gave for it.
    """
    in_ranks = plan.budget.unit == "rank"
    return parts_by(
        plan.modules, plan.constraints, in_ranks=in_ranks, not_targeted=plan.not_targeted
    )


def parts_by(
    modules: Sequence[TargetModule],
    constraints: Constraints,
    *,
    in_ranks: bool,
    not_targeted: Collection[str],
) -> Gather:
    """Say how some of the modules are gathered: constraints may name the others as well.

    Args:
        modules: All modules.
        constraints: What every plan keeps to.
        in_ranks: Whether limits count ranks.
        not_targeted: Names that were meant to be targets and are none.

    Returns:
        Gathers some modules.
    """
    # Of some modules nobody can tell which families the others are.
    resolve_types(constraints, modules, not_targeted)
    resolve_groups(constraints, modules, not_targeted)
    named = {*(module.name for module in modules), *not_targeted}

    def gather_some(some: Sequence[TargetModule]) -> Gathered:
        others = named - {module.name for module in some}
        return gather(some, constraints, in_ranks=in_ranks, not_targeted=others)

    return gather_some


def _spendable(parts: Iterable[Part]) -> int:
    """What parts spend of their limits at most."""
    return sum(part.units.affordable(part.limit) for part in parts)


def _inside(
    modules: Iterable[TargetModule], chosen: Collection[str]
) -> tuple[TargetModule, ...]:
    return tuple(module for module in modules if module.block in chosen)


def _over_all(
    modules: Sequence[TargetModule],
    highest: int,
    limit: int,
    *,
    ways: Sequence[tuple[Gather, int]],
    seed: int,
) -> dict[str, Named]:
    """The controls of every rule, over all modules: by the first floors that a limit can meet."""
    *others, last = [
        partial(
            _controls_within, modules, limit, (lowest, highest), gather_some=some, seed=seed
        )
        for some, lowest in ways
    ]
    for solve in others:
        with suppress(InfeasibleBudget):
            return solve()
    return last()


def _controls_within(
    modules: Sequence[TargetModule],
    limit: int,
    bounds: tuple[int, int],
    *,
    gather_some: Gather,
    seed: int,
) -> dict[str, Named]:
    found: dict[str, Named] = {}
    for part in gather_some(modules).within(bounds, limit):
        controls = control_table(part.units, part.names, part.limit, seed=seed)
        steps = {name: part.units.steps_of(ranks) for name, ranks in controls.items()}
        check_steps(part.units, part.limit, steps)
        for name, ranks in controls.items():
            found.setdefault(name, {}).update(zip(part.names, ranks.tolist(), strict=True))
    return {n: {m.name: ranks[m.name] for m in modules} for n, ranks in found.items()}


def _drawn(
    modules: Sequence[TargetModule],
    blocks: Sequence[str],
    n: int,
    bounds: tuple[int, int],
    limit: int,
    *,
    gather_some: Gather,
    seed: str,
) -> Named | None:
    """Layers drawn at random that have room for a limit; ``None`` where a few draws found none."""
    for turn in range(_TRIES):
        order = sorted(blocks, key=lambda block: _digest(f"{seed}:{turn}:{block}"))
        drawn = frozenset(order[:n])
        try:
            parts = gather_some(_inside(modules, drawn)).within(bounds, limit)
            if _spendable(parts) == limit:
                return _even(modules, parts)
        except InfeasibleBudget:
            continue
    return None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _needed(
    modules: Sequence[TargetModule],
    limit: int,
    *,
    low: int,
    gather_some: Gather,
    constraints: Constraints,
) -> int:
    """The lowest ceiling at which modules, by the rules of their types, spend most of a limit."""
    top = max(min(module.d_in, module.d_out) for module in modules)
    ladder = [int(rank) for rank in ladder_of(constraints, top)]
    gathered = gather_some(modules)

    def spends(ceiling: int) -> int:
        try:
            parts = gathered.within((low, ceiling), limit)
        except InfeasibleBudget:
            return -1
        return sum(min(part.limit, part.units.interval[1]) for part in parts)

    most = spends(max(top, ladder[-1]))
    if most < 0:  # no ceiling helps
        return top
    return ladder[bisect_left(ladder, most, hi=len(ladder) - 1, key=spends)]


def _sums(
    layers: Mapping[str, Collection[TargetModule]], values: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, Fraction]]:
    """Score of each layer, rounded once, and exactly where that rounds two layers to one score.

    A sum that is rounded correctly is never less than that of a lower score.

    Returns:
        Both by block.
    """
    claims = {b: [values[module.name] for module in inside] for b, inside in layers.items()}
    for block, some in claims.items():
        for module, value in zip(layers[block], some, strict=True):
            if not 0 <= value < math.inf:
                _check(module.name, value)
    rounded = {block: _rounded_sum(some) for block, some in claims.items()}
    n_of = Counter(rounded.values())
    exact = {
        block: sum(map(Fraction, some), Fraction(0))
        for block, some in claims.items()
        if n_of[rounded[block]] > 1
    }
    return rounded, exact


def _rounded_sum(values: Iterable[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


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
