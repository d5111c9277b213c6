"""No initial weights at all: A and B are zero, and so is every gradient of theirs."""

import torch

from fimlora.adapter.initial.directions import Factors, adapted
from fimlora.plan import RankPlan
from fimlora.statistics import Statistics


def weights(plan: RankPlan, statistics: Statistics | None, *, seed: int) -> Factors:  # noqa: ARG001
    """Make zeros.

    Args:
        plan: The plan.
        statistics: Not looked at.
        seed: Not looked at.

    Returns:
        A and B by module name.
    """
    return {
        m.name: (
            torch.zeros(rank * m.n_matrices, m.d_in),
            torch.zeros(m.d_out, rank * m.n_matrices),
        )
        for m, rank in adapted(plan)
    }
