"""What the rule ``layers`` shares over the layers that are chosen, and what it is held against.

It is shared as the uniform control shares it over all, so this rule differs from that in where
alone; ties, menus and rules per type hold among the modules of these layers. Beside the usual
controls there are as many layers drawn at random: they show what the choice is worth. All of them
are cut out of modules that are gathered once. Nothing here imports torch.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction

import numpy as np

from fimlora.allocation.controls import check_steps, control_table, spread_out
from fimlora.allocation.division import Gathered, Part, gathered_of
from fimlora.allocation.layers import Layers, Places, choose_layers, n_layers_of
from fimlora.allocation.many import share_many
from fimlora.allocation.named_ranks import NamedRanks
from fimlora.allocation.units import Floats, Ranks, ladder_of
from fimlora.constraints import shares_of
from fimlora.errors import InfeasibleBudget, InvalidOption
from fimlora.plan import RankPlan

RANDOM_LAYERS = ("random-layers", *(f"random-layers-{i}" for i in range(2, 6)))
# Layers may be of unlike size, so that a draw may have no room for the budget.
_TRIES = 64
Named = dict[str, int]  # rank by module name
Tables = dict[str, Ranks]  # rank of each module, by control


def layer_bounds(
    gathered: Gathered,
    places: Places,
    limit: int,
    *,
    mean: Fraction,
    given: tuple[int | None, int | None],
) -> tuple[int, int]:
    """The bounds given, completed by the defaults.

    Args:
        gathered: All modules.
        places: Those of the chosen layers.
        limit: Ranks in total, or parameters.
        mean: The budget's mean rank over all modules.
        given: Lowest and highest rank, if given. By default the lowest is 1, and the highest is
            twice the mean, or what the chosen layers need to spend the limit.

    Returns:
        Lowest and highest rank of a module of the chosen layers.

    Raises:
        InvalidOption: The floor that was given is above what the server allows.
    """
    low, high = given
    menu, cap = gathered.constraints.rank_menu, gathered.constraints.max_lora_rank
    if low is not None and cap is not None and low > cap:
        raise InvalidOption(f"r_min={low} is above max_lora_rank={cap}")
    low = 1 if low is None else low
    if high is None:
        needed = _needed(gathered.select(places), limit, low=low)
        high = max(1, low, math.ceil(mean * 2), needed)
        high = min((rank for rank in menu if rank >= high), default=high)
    return low, max(low, high if cap is None else min(high, cap))


def share_over_layers(
    gathered: Gathered,
    layers: Layers,
    chosen: Sequence[int],
    bounds: tuple[int, int],
    limit: int,
    *,
    seed: int,
) -> tuple[Named, NamedRanks]:
    """Share a limit over some layers evenly, and over all of them, and over others.

    Args:
        gathered: All modules.
        layers: The layers that they are in.
        chosen: Numbers of the chosen layers.
        bounds: Lowest and highest rank of their modules; no control goes above the highest.
        limit: Ranks in total, or parameters.
        seed: Seed of the random controls.

    Returns:
        The ranks, and by their names controls that spend the same.

    Raises:
        InfeasibleBudget: No ranks within the bounds meet it in these layers.
    """  # noqa: DOC502 - the solvers raise
    parts = parts_inside(gathered, layers.inside(chosen), bounds, limit)
    ranks, spendable = even_ranks(parts, len(gathered)), _spendable(parts)
    controls = _over_all(gathered, bounds[1], spendable, seed=seed)
    for i, control in enumerate(RANDOM_LAYERS):
        drawn = _drawn(gathered, layers, len(chosen), bounds, spendable, seed=f"{seed}:{i}")
        controls |= {} if drawn is None else {control: drawn}
    return gathered.named(ranks), NamedRanks(gathered.names.tolist(), controls)


def parts_inside(
    gathered: Gathered, places: Places, bounds: tuple[int, int], limit: int
) -> tuple[Part, ...]:
    """Divide a limit over some modules alone.

    Args:
        gathered: All modules.
        places: Places of those, rising.
        bounds: Their lowest and highest rank.
        limit: Ranks in total, or parameters.

    Returns:
        The parts, with places among all modules.

    Raises:
        InfeasibleBudget: No ranks within the bounds meet it among these modules.
    """  # noqa: DOC502 - the solver raises
    parts = gathered.select(places).within(bounds, limit)
    return tuple(replace(part, columns=places[part.columns]) for part in parts)


def even_ranks(parts: Iterable[Part], n_modules: int) -> Ranks:
    """Share the limits of parts as evenly as whole ranks allow.

    Args:
        parts: The parts.
        n_modules: Number of all modules.

    Returns:
        Rank of each; 0 for modules that are in no part.

    Raises:
        InfeasibleBudget: No ranks within the bounds of a part meet its limit.
    """  # noqa: DOC502 - the solver raises
    shared = np.zeros(n_modules, dtype=np.int64)
    for part in parts:
        claims = np.ones((1, len(part.columns)))
        ranks = share_many(spread_out(part.units), claims, part.limit)[0]
        check_steps(part.units, part.limit, {"layers": part.units.steps_of(ranks)})
        shared[part.columns] = ranks
    return shared


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
    layers, gathered = Layers(plan.modules), gathered_of(plan)
    n_layers = n_layers_of(plan.modules, plan.ranks)
    chosen = layers.numbered(choose_layers(layers, values, by_layer, n_layers))
    bounds = plan.r_min, plan.r_max
    parts = parts_inside(gathered, layers.inside(chosen), bounds, plan.limit)
    return gathered.named(even_ranks(parts, len(gathered)))


def many_layers_like(plan: RankPlan, scores: Floats) -> Ranks:
    """Do what `layers_like` does for many score vectors, as confidence asks for thousands.

    Args:
        plan: The plan; one that `fits_any_layers`.
        scores: One score vector per row, in the order of the plan's modules (R modules).

    Returns:
        Rank per row and module (R modules).
    """
    layers, gathered = Layers(plan.modules), gathered_of(plan)
    is_inside = (layers.of[:, None] == np.arange(len(layers))).astype(np.float64)
    n, bounds = n_layers_of(plan.modules, plan.ranks), (plan.r_min, plan.r_max)
    order = np.argsort(-(scores @ is_inside), axis=1, kind="stable")[:, :n]
    choices, which = np.unique(np.sort(order, axis=1), axis=0, return_inverse=True)
    ranks = np.empty((len(choices), len(gathered)), dtype=np.int64)
    for choice, row in zip(choices, ranks, strict=True):
        places = layers.inside(choice.tolist())
        parts = parts_inside(gathered, places, bounds, plan.limit)
        row[:] = even_ranks(parts, len(gathered))
    return ranks[which.reshape(-1)]


def fits_any_layers(plan: RankPlan) -> bool:
    """Say whether any layers could share a plan's limit: those of some models are of unlike size.

    Args:
        plan: A plan by layers.

    Returns:
        Whether they could. With shares per type, layers of unlike size are taken not to.
    """
    layers = Layers(plan.modules)
    sizes = [(module.kind, module.d_in, module.d_out) for module in plan.modules]
    if len({*map(tuple, layers.sorted_in(sizes))}) == 1:
        return True
    if shares_of(plan.constraints.per_type):
        return False
    gathered, bounds = gathered_of(plan), (plan.r_min, plan.r_max)
    every = [
        parts_inside(gathered, layers.inside([i]), bounds, plan.limit)[0].units
        for i in range(len(layers))
    ]
    n = n_layers_of(plan.modules, plan.ranks)
    floors, rooms = (sorted(some) for some in zip(*(u.interval for u in every), strict=True))
    has_room = plan.limit <= sum(rooms[:n]) or not every[0].in_ranks
    return has_room and sum(floors[len(floors) - n :]) <= plan.limit


def _spendable(parts: Iterable[Part]) -> int:
    """What parts spend of their limits at most."""
    return sum(part.units.affordable(part.limit) for part in parts)


def _over_all(gathered: Gathered, highest: int, limit: int, *, seed: int) -> Tables:
    """The controls of every rule, over all modules: by the first floors that a limit can meet."""
    freely = replace(gathered, constraints=gathered.constraints.without_floors(highest))
    for some, lowest in ((gathered, 1), (freely, 1)):
        with suppress(InfeasibleBudget):
            return _controls_within(some, (lowest, highest), limit, seed=seed)
    return _controls_within(freely, (0, highest), limit, seed=seed)


def _controls_within(
    gathered: Gathered, bounds: tuple[int, int], limit: int, *, seed: int
) -> Tables:
    found: Tables = {}
    for part in gathered.within(bounds, limit):
        controls = control_table(part.units, part.limit, seed=seed)
        steps = {name: part.units.steps_of(ranks) for name, ranks in controls.items()}
        check_steps(part.units, part.limit, steps)
        for name, ranks in controls.items():
            whole = found.setdefault(name, np.empty(len(gathered), dtype=np.int64))
            whole[part.columns] = ranks
    return found


def _drawn(
    gathered: Gathered,
    layers: Layers,
    n: int,
    bounds: tuple[int, int],
    limit: int,
    *,
    seed: str,
) -> Ranks | None:
    """Layers drawn at random that have room for a limit; ``None`` where a few draws found none."""
    for turn in range(_TRIES):
        drawn = _draw(layers.encoded, n, seed=f"{seed}:{turn}")
        try:
            parts = parts_inside(gathered, layers.inside(drawn), bounds, limit)
            if _spendable(parts) == limit:
                return even_ranks(parts, len(gathered))
        except InfeasibleBudget:
            continue
    return None


def _draw(blocks: Sequence[bytes], n: int, *, seed: str) -> list[int]:
    """Numbers of some blocks: those whose digests with a seed come first."""
    sha256, begins = hashlib.sha256, f"{seed}:".encode()
    digests = [sha256(begins + block).digest() for block in blocks]
    words = np.frombuffer(b"".join(digests), dtype=">u8").reshape(len(blocks), -1)
    begin = words[:, 0].astype(np.uint64)
    order = np.argsort(begin)
    if (np.diff(begin[order]) == 0).any():  # hardly ever: the rest of them decides
        order = np.lexsort(words.T[::-1])
    found: list[int] = order[:n].tolist()
    return found


def _needed(gathered: Gathered, limit: int, *, low: int) -> int:
    """The lowest ceiling at which modules, by the rules of their types, spend most of a limit."""
    top = int(gathered.sizes.max())
    ladder = [int(rank) for rank in ladder_of(gathered.constraints, top)]

    def spends(ceiling: int) -> int:
        try:
            units, limits = gathered.solvable((low, ceiling), limit)
        except InfeasibleBudget:
            return -1
        return sum(min(limits[part], units[part].interval[1]) for part in units)

    most = spends(max(top, ladder[-1]))
    if most < 0:  # no ceiling helps
        return top
    return ladder[bisect_left(ladder, most, hi=len(ladder) - 1, key=spends)]
