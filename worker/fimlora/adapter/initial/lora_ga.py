"""LoRA-GA's initial weights (2407.05000): A and B from different directions of the gradient.

Symbols: r rank, O output features, s the plan's scale, ``G = U S V^T`` the mean gradient over the
examples, ``W`` a base weight.

``A = V_r^T`` and ``B = U_r..2r``, both times ``O^(1/4) / sqrt(gamma)``, gamma 16: the official
scaling, which does not depend on s. The adapter is not zero at the start, so the base weight must
become ``W - s B A`` for the model to begin as it was: `fimlora.adapter.initial.base_shift`.
"""

from fimlora.adapter.initial.directions import (
    Factors,
    adapted,
    directions_of,
    filled,
    leading,
)
from fimlora.numerics.seeded_draws import draw_lora_a
from fimlora.plan import RankPlan
from fimlora.statistics import Statistics

GAMMA = 16


def weights(plan: RankPlan, statistics: Statistics, *, seed: int) -> Factors:
    """Take the r first right vectors, and the r left ones after the first r.

    Where the gradient has fewer directions, rows of A are drawn as LoRA's own and columns of B
    are zero.

    Args:
        plan: The plan.
        statistics: Statistics with directions of gradients.
        seed: Seed of rows of A that the gradient has no direction for.

    Returns:
        A and B by module name.
    """
    found: Factors = {}
    for module, rank in adapted(plan):
        of, size = directions_of(statistics, module), module.d_out**0.25 / GAMMA**0.5
        A, B = leading(of.V, 0, rank) * size, leading(of.U.mT, rank, rank).mT * size
        found[module.name] = filled(A, draw_lora_a(module, rank=rank, seed=seed)), B
    return found
