"""Plans with ranks the test chooses."""

from typing import Any

from fimlora.plan import Budget, RankPlan, TargetModule
from fimlora.scores import Scores

MODULES = (
    TargetModule("model.layers.0.self_attn.q_proj", 64, 64),
    TargetModule("model.layers.1.mlp.down_proj", 176, 64),
    TargetModule("transformer.h.2.attn.c_attn", 24, 72, fan_in_fan_out=True),
    TargetModule("score", 64, 3),
)
SCORES = Scores(MODULES, {m.name: float(i + 1) for i, m in enumerate(MODULES)})


def plan_of(
    modules: tuple[TargetModule, ...],
    ranks: list[int],
    *,
    scale: int | float = 2,
    **more: Any,
) -> RankPlan:
    """A plan with ranks that repeat the given ones in the order of the modules."""
    chosen = {m.name: ranks[i % len(ranks)] for i, m in enumerate(modules)}
    return RankPlan(
        modules=modules,
        ranks=chosen,
        scores=dict.fromkeys(chosen, 1.0),
        budget=Budget("rank", max(1, sum(chosen.values())) / len(chosen)),
        limit=sum(chosen.values()),
        rule="proportional",
        r_min=min(ranks),
        r_max=max(ranks),
        scale=scale,
        **more,
    )
