"""Another plan from stored statistics: a new budget, rule or layout costs no new pass.

What depends on the model alone is taken from the plan that was made when it was at hand.
Nothing here imports torch, so a service answers from its own process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fimlora.adapter_config import build_adapter_config
from fimlora.allocation import allocate
from fimlora.plan import Budget, RankPlan, TargetModule
from fimlora.statistics import Arrays, Statistics


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


@dataclass(frozen=True, slots=True)
class Scored:
    """All that a plan takes from statistics: little, where they may be large.

    Attributes:
        modules: The target modules, in the model's order.
        base_parameters: Parameters of the base model.
        spectra: Singular values per module name, for the rule ``spectral`` only.
        by_module: Score per module name under one scale and one aggregation.
        facts: Their provenance.
    """

    modules: tuple[TargetModule, ...]
    base_parameters: int
    spectra: Arrays
    by_module: Mapping[str, float]
    facts: Mapping[str, Any]

    def scores(self, aggregation: str = "mean") -> Mapping[str, float]:  # noqa: ARG002
        """Deliver the scores, which were taken with one aggregation."""
        return self.by_module

    def provenance(self) -> Mapping[str, Any]:
        """Deliver the facts about the measurement."""
        return self.facts


def score(
    statistics: Statistics,
    *,
    rule: str = "proportional",
    scale: int | float = 2,
    aggregation: str = "mean",
) -> Scored:
    """Take from statistics what plans of a rule need, whatever their budget.

    Args:
        statistics: What was measured.
        rule: The rule of the plans.
        scale: LoRA scale of every module.
        aggregation: How statistics are reduced to scores.

    Returns:
        What `replan_scored` takes.
    """
    statistics = rescaled(statistics, scale)
    is_spectral = rule == "spectral"
    return Scored(
        statistics.modules,
        statistics.base_parameters,
        dict(statistics.spectra) if is_spectral else {},
        {} if is_spectral else statistics.scores(aggregation),
        statistics.provenance(),
    )


def replan(
    statistics: Statistics,
    known: Known,
    budget: Budget,
    *,
    rule: str = "proportional",
    scale: int | float = 2,
    aggregation: str = "mean",
    **options: Any,
) -> RankPlan:
    """Solve a plan as it had been solved right after measuring.

    Args:
        statistics: What was measured.
        known: The adapter that was written then; facts about the run are taken from it.
        budget: What may be spent.
        rule: The rule.
        scale: LoRA scale of every module.
        aggregation: How statistics are reduced to scores.
        **options: All else that `fimlora.allocate` takes.

    Returns:
        The plan; with the settings of the known one it is equal to it.
    """
    same: dict[str, Any] = {"rule": rule, "scale": scale, "aggregation": aggregation}
    return replan_scored(score(statistics, **same), known, budget, **same, **options)


def replan_scored(
    scored: Scored, known: Known, budget: Budget, *, aggregation: str = "mean", **options: Any
) -> RankPlan:
    """Solve a plan from what `score` has taken from statistics.

    Args:
        scored: Taken with the rule, the scale and the aggregation of the plan.
        known: The adapter that was written when the statistics were measured.
        budget: What may be spent.
        aggregation: How statistics were reduced to scores.
        **options: All else that `fimlora.allocate` takes.

    Returns:
        The plan.
    """
    measured = {*scored.facts, "aggregation"}
    facts = known.rank_map["provenance"].items()
    return allocate(
        scored,
        budget=budget,
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
