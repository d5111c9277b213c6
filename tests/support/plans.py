"""Plans with ranks the test chooses."""

from fimlora.plan import Budget, RankPlan, TargetModule


def plan_of(
    modules: tuple[TargetModule, ...], ranks: list[int], *, scale: int | float = 2
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
    )
