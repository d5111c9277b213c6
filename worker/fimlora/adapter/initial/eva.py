"""EVA's initial weights (2410.07170): A the leading directions of a module's inputs, B zero.

Symbols: r rank, I input features, K' components that were found.

A is the r first principal components, of length one, as EVA has them without whitening. With B zero
the adapter begins as the base model; under the plan's scale, which is the same for all modules,
alpha follows the rank as it does in EVA.
"""

import torch

from fimlora.adapter.initial.directions import Factors, adapted, filled, leading
from fimlora.numerics.seeded_draws import draw_lora_a
from fimlora.plan import RankPlan
from fimlora.statistics import Statistics


def weights(plan: RankPlan, statistics: Statistics, *, seed: int) -> Factors:
    """Take the leading components; a rank beyond those that there are starts as LoRA's own.

    Args:
        plan: The plan.
        statistics: Statistics with input components.
        seed: Seed of rows of A that inputs have no direction for.

    Returns:
        A and B by module name.
    """
    components = statistics.quantities["input_components"]
    found: Factors = {}
    for module, rank in adapted(plan):
        A = leading(torch.as_tensor(components[module.name]), 0, rank)
        drawn = draw_lora_a(module, rank=rank, seed=seed)
        found[module.name] = filled(A, drawn), torch.zeros(module.d_out, rank)
    return found
