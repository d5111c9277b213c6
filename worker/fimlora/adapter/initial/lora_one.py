"""LoRA-One's initial weights (2502.01235): B A is the best step of its rank down the gradient.

Symbols: r rank, s the plan's scale, ``G = U S V^T`` the mean gradient over the examples, ``G_r``
its best approximation of rank r.

LoRA-One sets ``B = -U_r sqrt(S_r / (gamma S_1))`` and ``A = sqrt(S_r / (gamma S_1)) V_r^T`` at the
scale ``16 / sqrt(r)`` (alpha 16 with rsLoRA), gamma 128, so that the adapter begins with the update
``-16 / sqrt(r) G_r / (gamma S_1)``. Under a scale s the same update takes both matrices times
``sqrt(16 / (s sqrt(r)))``, which keeps them balanced.
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

GAMMA, ALPHA = 128, 16


def weights(plan: RankPlan, statistics: Statistics, *, seed: int) -> Factors:
    """Factor the step; a rank that the gradient has no direction for starts as LoRA's own.

    Args:
        plan: The plan.
        statistics: Statistics with directions of gradients.
        seed: Seed of rows of A that the gradient has no direction for.

    Returns:
        A and B by module name.
    """
    found: Factors = {}
    for module, rank in adapted(plan):
        of = directions_of(statistics, module)
        first = of.S[0] if of.S[0] > 0 else 1.0
        roots = (of.S / first * ALPHA / (GAMMA * plan.scale_of(module.name) * rank**0.5)).sqrt()
        A = leading(roots[:, None] * of.V, 0, rank)
        B = leading((of.U * roots).mT, 0, rank).mT
        drawn = draw_lora_a(module, rank=rank, seed=seed)
        found[module.name] = filled(A, drawn), -B
    return found
