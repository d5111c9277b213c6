"""Make the A and B of an adapter, by the name of its initial weights."""

from collections.abc import Callable

import torch

from fimlora.adapter.initial import eva, gora, kaiming, lora_ga, lora_one, zeros
from fimlora.adapter.initial.checks import check_ranks
from fimlora.adapter.initial.directions import Factors
from fimlora.adapter.initial.measured import check_seed, check_statistics
from fimlora.adapter.stacked import only_selected
from fimlora.plan import RankPlan
from fimlora.statistics import Statistics

_WEIGHTS: dict[str, Callable[..., Factors]] = {
    "kaiming": kaiming.weights,
    "eva": eva.weights,
    "lora-ga": lora_ga.weights,
    "lora-one": lora_one.weights,
    "gora": gora.weights,
    "zeros": zeros.weights,
}


def initial_weights(
    plan: RankPlan, name: str, statistics: Statistics | None, *, seed: int
) -> Factors:
    """Make initial weights at the plan's scale.

    Args:
        plan: The plan.
        name: Name of the initial weights; see `fimlora.adapter.initial.registry.INITS`.
        statistics: What they are made of, if of anything.
        seed: Seed of what is drawn.

    Returns:
        A (r I) and B (O r) by module name, in float32 on the CPU, for modules with a rank.

    Raises:
        InvalidOption: The statistics lack something, or a rank is higher than they go.
    """  # noqa: DOC502 - the helpers raise
    wanted = [module for module in plan.modules if plan.ranks[module.name]]
    check_ranks(name, wanted, plan.ranks)
    check_statistics(name, statistics, wanted)
    check_seed(name, statistics, seed)
    made = _WEIGHTS[name](plan, statistics, seed=seed)
    return {
        module.name: only_selected(
            module,
            torch.as_tensor(made[module.name][0], dtype=torch.float32).contiguous(),
            torch.as_tensor(made[module.name][1], dtype=torch.float32).contiguous(),
        )
        for module in wanted
    }
