"""Another plan from stored statistics: a new budget, rule or layout costs no new pass.

What depends on the model alone is taken from the plan that was made when it was at hand.
Nothing here imports torch, so a service answers from its own process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fimlora.adapter_config import build_adapter_config
from fimlora.allocation import allocate
from fimlora.plan import Budget, RankPlan
from fimlora.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Known:
    """An adapter that was written when the statistics were measured.

    Attributes:
        rank_map: The content of its ``rank_map.json``; the provenance, and name and rank of
            the modules are enough.
        config: The content of its ``adapter_config.json``.
    """

    rank_map: Mapping[str, Any]
    config: Mapping[str, Any]

    def target_modules(self, plan: RankPlan) -> list[str] | None:
        """Short names of the modules to target, as long as those are the same modules.

        Returns:
            Names for ``target_modules``; ``None`` when the plan targets other modules, as
            nobody knows then what a short name would hit.
        """
        before = {row["name"] for row in self.rank_map["modules"] if row["rank"]}
        now = {name for name, rank in plan.ranks.items() if rank}
        return list(self.config["target_modules"]) if before == now else None


def replan(
    statistics: Statistics,
    known: Known,
    budget: Budget,
    *,
    scale: int | float = 2,
    aggregation: str = "mean",
    **options: Any,
) -> RankPlan:
    """Solve a plan as it had been solved right after measuring.

    Args:
        statistics: What was measured.
        known: The adapter that was written then; facts about the run are taken from it.
        budget: What may be spent.
        scale: LoRA scale of every module.
        aggregation: How statistics are reduced to scores.
        **options: All else that `fimlora.allocate` takes.

    Returns:
        The plan; with the settings of the known one it is equal to it.
    """
    statistics = rescaled(statistics, scale)
    measured = {*statistics.provenance(), "aggregation"}
    facts = known.rank_map["provenance"].items()
    return allocate(
        statistics,
        budget=budget,
        scale=scale,
        aggregation=aggregation,
        provenance={key: value for key, value in facts if key not in measured},
        **options,
    )


def rescaled(statistics: Statistics, scale: int | float) -> Statistics:
    """The same sums under another LoRA scale: it enters the scores only.

    Returns:
        Statistics equal to those of a run with that scale.
    """
    return statistics if statistics.scale == scale else replace(statistics, scale=scale)


def replanned_config(plan: RankPlan, known: Known, *, layout: str = "B") -> dict[str, Any]:
    """The adapter config of a plan that `replan` made.

    Args:
        plan: The plan.
        known: The adapter that was written when its statistics were measured.
        layout: ``B`` or ``C``.

    Returns:
        The content of ``adapter_config.json``.
    """
    return build_adapter_config(
        plan,
        base_model=known.config["base_model_name_or_path"],
        task_type=known.config["task_type"],
        layout=layout,
        target_modules=known.target_modules(plan),
    )
