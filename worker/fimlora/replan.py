"""Another plan from stored statistics: a new budget, method or layout costs no new pass.

What depends on the model alone is taken from the plan that was made when it was at hand.
Nothing here imports torch, so a service answers from its own process.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fimlora.adapter.config import build_adapter_config
from fimlora.adapter.initial.registry import INITIAL
from fimlora.allocation import allocate
from fimlora.confidence.evidence import with_confidence
from fimlora.confidence.signal import source_if_any, with_signal
from fimlora.methods.expert_choice import ExpertChoice, with_experts
from fimlora.methods.registry import METHODS
from fimlora.methods.score import score
from fimlora.plan import Budget, RankPlan
from fimlora.scores import Scores
from fimlora.statistics import Statistics

# What a plan says of its own scores, which another one may have nothing of; what has a field of
# its own; and what an adapter begins with, which is a fact of the files that were written.
_OF_THAT_PLAN = frozenset({"not_targeted", "expert_selection", INITIAL}).union(
    *(method.states for method in METHODS.values())
)


@dataclass(frozen=True, slots=True)
class WrittenAdapter:
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

    def facts_beside(self, scores: Scores) -> dict[str, Any]:
        """Facts about the run that its statistics do not know.

        Returns:
            The provenance of a new plan, but for what its scores say themselves.
        """
        measured = {*scores.provenance, *_OF_THAT_PLAN}
        facts = self.rank_map["provenance"].items()
        return {key: value for key, value in facts if key not in measured}


def replan(
    statistics: Statistics,
    written: WrittenAdapter,
    budget: Budget,
    *,
    method: str = "fim",
    scale: int | float = 2,
    aggregation: str = "mean",
    experts: Mapping[str, Any] | None = None,
    **options: Any,
) -> RankPlan:
    """Solve a plan as it had been solved right after measuring.

    Args:
        statistics: What was measured.
        written: The adapter of that time; facts about the run are taken from it.
        budget: What may be spent.
        method: The method.
        scale: LoRA scale of every module.
        aggregation: How statistics are reduced to scores.
        experts: Which experts train, as requests have it; all by default.
        **options: All else that `fimlora.allocate` takes.

    Returns:
        The plan; with the settings of the one written then it is equal to it.
    """
    choice = ExpertChoice.of(experts, seed=options.get("seed", 0))
    statistics = with_experts(statistics, choice)
    scores = score(statistics, method, scale=scale, aggregation=aggregation)
    facts = written.facts_beside(scores)
    plan = allocate(scores, budget, scale=scale, provenance=facts, **options)
    source = source_if_any(statistics, method, scale=scale, aggregation=aggregation)
    plan = with_signal(plan, source)
    return with_confidence(statistics, plan)


def replanned_config(
    plan: RankPlan, written: WrittenAdapter, *, layout: str = "B"
) -> dict[str, Any]:
    """The adapter config of a plan that `replan` made.

    Args:
        plan: The plan.
        written: The adapter that was written when its statistics were measured.
        layout: ``B`` or ``C``.

    Returns:
        The content of ``adapter_config.json``.
    """
    return build_adapter_config(
        plan,
        base_model=written.config["base_model_name_or_path"],
        task_type=written.config["task_type"],
        layout=layout,
        target_modules=written.target_modules(plan),
        modules_to_save=written.config.get("modules_to_save"),
    )
