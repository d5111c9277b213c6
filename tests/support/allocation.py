"""What the tests of allocation share: cases for the solvers, and modules of unequal cost."""

import math
import random
from typing import Any

from hypothesis import strategies as st

from fimlora.allocation.layers import Layers
from fimlora.allocation.spectral import share_by_gain
from fimlora.allocation.units import gather_units
from fimlora.plan import TargetModule


def named(values):
    return {f"m{i}": value for i, value in enumerate(values)}


@st.composite
def cases(draw, value, *, max_size=12, top=9, most_cost=None):
    """Values with bounds per module and a feasible limit: in ranks, or at unequal costs.

    At costs, the limit may be above what the bounds permit.
    """
    values = named(draw(st.lists(value, min_size=1, max_size=max_size)))
    lowest = {n: draw(st.integers(0, 3)) for n in values}
    highest = {n: draw(st.integers(lowest[n], top)) for n in values}
    weights = {n: draw(st.integers(1, most_cost or 1)) for n in values}
    least, most = (sum(weights[n] * b[n] for n in values) for b in (lowest, highest))
    limit = draw(st.integers(least, most + 10 if most_cost else most))
    options = {"limit": limit, "lowest": lowest, "highest": highest}
    return values, options | ({"weights": weights} if most_cost else {})


def solve_by_gain(
    spectra, *, limit, lowest, highest, weights=None, multiple_of=1, rank_menu=(), groups=()
) -> dict[str, int]:
    """The solver of ``spectral`` behind the signature of `allocate_ranks`."""
    units = gather_units(
        spectra,
        lowest=lowest,
        highest=highest,
        weights=weights,
        multiple_of=multiple_of,
        rank_menu=rank_menu,
        groups=groups,
    )
    return share_by_gain(units, spectra, limit)


def shared_in_loops(
    scores, *, limit, lowest, highest, weights=None, multiple_of=1, rank_menu=(), groups=()
) -> dict[str, int]:
    """The rule ``proportional`` in plain Python, one module or group after the other."""
    names = list(scores)
    tied = [tuple(sorted(group)) for group in groups if group]
    units = [*tied, *((n,) for n in names if not any(n in group for group in tied))]
    allowed = [0, *rank_menu] if rank_menu else range(0, max(highest.values()) + 1, multiple_of)

    def within(unit):
        low, high = max(lowest[n] for n in unit), min(highest[n] for n in unit)
        return [rank for rank in allowed if low <= rank <= high]

    ranks_of = {unit: within(unit) for unit in units}
    w = {unit: sum((weights or dict.fromkeys(names, 1))[n] for n in unit) for unit in units}
    score = {unit: math.fsum(scores[n] / len(unit) for n in unit) for unit in units}
    limit = min(limit, sum(w[u] * ranks_of[u][-1] for u in units))
    largest = max(score.values())
    q = {u: max(s / largest, 2.0**-200) if largest else 1.0 for u, s in score.items()}

    def quotas(level):
        return {u: min(max(level * q[u], ranks_of[u][0]), ranks_of[u][-1]) for u in units}

    def spent(level):
        return math.fsum(w[u] * quota for u, quota in quotas(level).items())

    bends = sorted({end / q[u] for u in units for end in (ranks_of[u][0], ranks_of[u][-1])})
    stop = next((bend for bend in bends if spent(bend) >= limit), bends[-1])
    start = max((bend for bend in bends if bend < stop), default=stop)
    free = [u for u in units if ranks_of[u][0] / q[u] < stop and ranks_of[u][-1] / q[u] > start]
    level = stop
    if free and start < stop:
        fixed = math.fsum(w[u] * quotas(start)[u] for u in units if u not in free)
        level = (limit - fixed) / math.fsum(w[u] * q[u] for u in free)
        level = min(max(level, start), stop)

    quota, ranks, remainder = quotas(level), {}, {}
    for unit in units:
        ranks[unit] = max(rank for rank in ranks_of[unit] if rank <= quota[unit])
        above = [rank for rank in allowed if rank > ranks[unit]]
        size = min(above) - ranks[unit] if above else 1
        remainder[unit] = round((quota[unit] - ranks[unit]) / size * 2**20)
    left = limit - sum(w[u] * ranks[u] for u in units)
    turns = sorted(units, key=lambda u: (-remainder[u], -score[u], u[0]))
    before = None
    while before != ranks:
        before = dict(ranks)
        for unit in turns:
            after = min((rank for rank in ranks_of[unit] if rank > ranks[unit]), default=None)
            if after is not None and w[unit] * (after - ranks[unit]) <= left:
                left -= w[unit] * (after - ranks[unit])
                ranks[unit] = after
    return {name: next(ranks[u] for u in units if name in u) for name in names}


def llama_like(layers: int = 4) -> tuple[TargetModule, ...]:
    """Modules of unequal cost."""
    return tuple(
        TargetModule(f"model.layers.{layer}.{kind}", d_in, d_out)
        for layer in range(layers)
        for kind, d_in, d_out in [
            ("self_attn.q_proj", 64, 64),
            ("self_attn.v_proj", 64, 16),
            ("mlp.down_proj", 176, 64),
        ]
    )


COST = sum(m.cost for m in llama_like())


def scores_of(modules, seed: int = 0) -> dict[str, float]:
    rng = random.Random(seed)
    return {m.name: rng.lognormvariate(0, 2) for m in modules}


def spectra_of(modules, seed: int = 0) -> dict[str, Any]:
    """All singular values of each module, in no order."""
    rng = random.Random(seed)
    return {
        m.name: [rng.lognormvariate(0, 2) for _ in range(min(m.d_in, m.d_out))] for m in modules
    }


def modules_by_layer(modules):
    """The modules of each layer by the name of its block, first layer first."""
    layers = Layers(modules)
    return dict(zip(layers.blocks, layers.sorted_in(modules), strict=True))
