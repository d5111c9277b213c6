"""LoRA's own initial weights: A drawn for each module by its name and a seed, B zero."""

import torch

from fimlora.adapter.initial.directions import Factors, adapted
from fimlora.numerics.seeded_draws import draw_lora_a
from fimlora.plan import RankPlan
from fimlora.statistics import Statistics


def weights(plan: RankPlan, statistics: Statistics | None, *, seed: int) -> Factors:  # noqa: ARG001
    """Draw A as PEFT does, Kaiming-uniform at a = sqrt(5).

    Args:
        plan: The plan.
        statistics: Not looked at.
        seed: Seed of A.

    Returns:
        A and B by module name.
    """
    return {
        m.name: (
            draw_lora_a(m, rank=rank, seed=seed),
            torch.zeros(m.d_out, rank * m.n_matrices),
        )
        for m, rank in adapted(plan)
    }
