"""What the tests of allocation share: cases for the solvers, and modules of unequal cost."""

import random
from typing import Any

from hypothesis import strategies as st

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
    spectra, *, limit, lowest, highest, weights=None, multiple_of=1, groups=()
) -> dict[str, int]:
    """The solver of ``spectral`` behind the signature of `allocate_ranks`."""
    units = gather_units(
        spectra,
        lowest=lowest,
        highest=highest,
        weights=weights,
        multiple_of=multiple_of,
        groups=groups,
    )
    return share_by_gain(units, spectra, limit)


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
