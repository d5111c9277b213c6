"""GoRA's initial weights (2502.12171): A drawn at random, B what it allows of a gradient step.

Symbols: r rank, I input features, s the plan's scale alpha / r, ``G`` (O I) the mean gradient over
the examples, ``P = A^T (A A^T)^+ A`` the projection on the rows of A.

GoRA sets ``B = -xi / alpha G A^T (A A^T + 1e-8 I)^+`` with ``xi = gamma k sqrt(I / r)`` under the
scale ``alpha / k``, whatever k is (a mean rank, the module's own, the root of either). So the
adapter begins with the update ``-gamma sqrt(I / r) G P``, of about the norm of ``gamma G``: alpha
and k have cancelled. Under a scale s the same update takes

    B = -(gamma / s) sqrt(I / r) G A^T (A A^T + 1e-8 I)^+.

The minus is the paper's; its published code has had a plus since 321fe07, which goes uphill.
"""

import torch

from fimlora.adapter.initial.directions import Factors, adapted
from fimlora.numerics.seeded_draws import draw_lora_a
from fimlora.plan import RankPlan
from fimlora.statistics import Statistics

GAMMA = 5e-2  # the learning rate of the published scripts
_RIDGE = 1e-8


def weights(plan: RankPlan, statistics: Statistics, *, seed: int) -> Factors:
    """Take B from the gradients in the rows of A.

    Args:
        plan: The plan.
        statistics: Statistics with projected gradients, for this seed.
        seed: Seed of A.

    Returns:
        A and B by module name.
    """
    found: Factors = {}
    for module, rank in adapted(plan):
        A = draw_lora_a(module, rank=rank, seed=seed)
        projected = torch.as_tensor(statistics.quantities["gradient_projected"][module.name])
        G_A = projected[:, :rank].double() / statistics.n_examples  # G A^T
        gram = A.double() @ A.double().mT + _RIDGE * torch.eye(rank, dtype=torch.float64)
        step = GAMMA / plan.scale_of(module.name) * (module.d_in / rank) ** 0.5
        found[module.name] = A, -step * G_A @ torch.linalg.pinv(gram, hermitian=True)
    return found
