"""Effective rank: how many directions a module's mean gradient has, not how much they matter.

Symbols: sigma_j the singular values of ``M = G (C + lambda I)^(-1/2)``, G the mean gradient over
all examples, C the diagonal second moment of the module's input, lambda 1 % of its mean;
``p_j = sigma_j^2 / sum sigma^2``. The effective rank is ``exp(-sum p_j log p_j)``, from 1 for one
direction to min(d_in, d_out) for as many equal ones.

Re-implemented after `GoGoKo699/early-gradient-spectra-lora` (c1c7188), which shares by a knapsack
over ``score / sqrt(rank)``; here the rule `proportional` does, under the budget of every other plan.

Where a gradient was sketched, the leading values and the energy of all are known, and how the rest
of the energy lies is not: at least as concentrated as in values of the size of the last known one,
at most spread evenly over all that remain. The score is the geometric mean of the two bounds.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fimlora.scores import Scores
from fimlora.statistics import Statistics
from fimlora.statistics.statistics import RESOLVED_ERROR

# Bounds further apart than this factor are called unresolved.
RESOLVED_FACTOR = 1.1


class Bounds(NamedTuple):
    """Between what an effective rank lies."""

    least: float
    most: float


def score_effective_rank(
    statistics: Statistics,
    aggregation: str,  # noqa: ARG001 - there is one number per module
    estimator: str | None,  # noqa: ARG001
) -> Scores:
    """Score every target module by the effective rank of its whitened mean gradient.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: Not looked at.
        estimator: Not looked at.

    Returns:
        The scores, 0 where there is no gradient. The provenance has the bounds of those that were
        sketched, and names the modules of which too little is known.
    """
    recorded = statistics.quantities
    bounds = {
        module.name: rank_bounds(
            recorded["whitened_spectra"][module.name],
            recorded["whitened_energies"][module.name],
            n_values=min(module.d_in, module.d_out),
        )
        for module in statistics.modules
    }
    errors = {name: recorded["whitened_errors"][name].item() for name in bounds}
    return Scores(
        statistics.modules,
        {name: math.sqrt(b.least * b.most) for name, b in bounds.items()},
        base_parameters=statistics.base_parameters,
        provenance={
            "effective_rank_bounds": {n: [*b] for n, b in bounds.items() if b.least < b.most},
            "unresolved_ranks": [
                name
                for name, b in bounds.items()
                if errors[name] > RESOLVED_ERROR or b.most > RESOLVED_FACTOR * b.least
            ],
        },
    )


def rank_bounds(
    values: NDArray[np.float64], energies: NDArray[np.float64], *, n_values: int
) -> Bounds:
    """Say between what the effective rank of a matrix lies.

    Args:
        values: Its leading singular values, falling, or all of them.
        energies: The sum of the squares of all: the least, an estimate, and the most.
        n_values: How many it has.

    Returns:
        Both bounds; they are one where all values are known.
    """
    squares = np.square(values)
    known, n_left = float(squares.sum()), n_values - len(values)
    if not known:
        return Bounds(0.0, 0.0)
    if not n_left:
        rank = math.exp(_entropy(squares / known))
        return Bounds(rank, rank)
    entropies = []
    for energy in (float(energies[0]), float(energies[-1])):
        shares = squares / max(energy, known)
        left, inside = max(0.0, 1 - float(shares.sum())), _entropy(shares)
        entropies += [inside + _concentrated(left, shares[-1]), inside + _spread(left, n_left)]
    return Bounds(math.exp(min(entropies)), math.exp(max(entropies)))


def _entropy(shares: NDArray[np.float64]) -> float:
    some = shares[shares > 0]
    return float(-(some * np.log(some)).sum())


def _concentrated(left: float, largest: float) -> float:
    """Entropy of what is left in as few values as may be, none above the last known one."""
    if not 0 < largest < left:
        return _spread(left, 1)
    n_full = math.floor(left / largest)
    return -n_full * largest * math.log(largest) + _spread(left - n_full * largest, 1)


def _spread(left: float, n_values: int) -> float:
    """Entropy of what is left, evenly in so many values."""
    return -left * math.log(left / n_values) if left > 0 else 0.0
