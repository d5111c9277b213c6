"""What a plan says of the initial weights that it is written with, before anything else.

Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fimlora.adapter.initial.registry import (
    EXPERTS_SELECTED,
    INITIAL,
    KAIMING,
    find_initial,
)
from fimlora.plan import PlanWarning, RankPlan
from fimlora.statistics import Statistics
from fimlora.statistics.options import Record
from fimlora.statistics.statistics import RESOLVED_ERROR


def with_initial(plan: RankPlan, name: str, statistics: Statistics | None) -> RankPlan:
    """State the initial weights that a plan is written with.

    Args:
        plan: The plan.
        name: Name of the initial weights.
        statistics: What they are made of.

    Returns:
        The plan with them in its provenance. Where it is not the base model at the start, does
        not train, or needs another base model, its first warning says that.
    """
    plan = with_selection(plan)
    if name == KAIMING:
        return plan
    initial = find_initial(name)
    facts: dict[str, Any] = {
        "name": name,
        "starts_as_base": initial.code not in {"starts_moved", "base_changes"},
        "changes_base": initial.changes_base,
    }
    warnings = list(plan.warnings)
    if Record.GRADIENT_FACTORS in initial.record and statistics is not None:
        facts["largest_error"] = max(errors_of(statistics).values(), default=0.0)
        warnings[:0] = _of_errors(name, statistics)
    if initial.code is not None:
        warnings.insert(0, PlanWarning(initial.code, f"initial weights {name} {initial.start}"))
    provenance = {**plan.provenance, INITIAL: facts}
    return replace(plan, provenance=provenance, warnings=tuple(warnings))


def with_selection(plan: RankPlan) -> RankPlan:
    """State that a plan trains some experts of fused ones alone, where that is not said yet.

    Args:
        plan: The plan.

    Returns:
        The plan, with that as its first warning.
    """
    said = {warning.code for warning in plan.warnings}
    warnings = [warning for warning in selection_warnings(plan) if warning.code not in said]
    return replace(plan, warnings=(*warnings, *plan.warnings)) if warnings else plan


def selection_warnings(plan: RankPlan) -> list[PlanWarning]:
    """Say what is to be minded of a plan that trains some experts of fused ones alone.

    Args:
        plan: The plan.

    Returns:
        One warning, or none.
    """
    fused = [m for m in plan.modules if m.experts is not None and plan.ranks[m.name]]
    if not fused:
        return []
    n_trained, n_all = (
        sum(n) for n in zip(*((m.n_trained, m.n_matrices) for m in fused), strict=True)
    )
    n_held = sum(m.held_cost * plan.ranks[m.name] for m in plan.modules)
    return [
        PlanWarning(
            EXPERTS_SELECTED,
            f"{n_trained:,} of {n_all:,} matrices of experts train, {plan.spent.parameters:,} of "
            f"{n_held:,} LoRA parameters, and the initial weights alone say which: begin with "
            "PeftModel.from_pretrained(base_model, folder, is_trainable=True), as from "
            "adapter_config.json alone all experts train; files and optimizer states are as large "
            "as those of all experts",
        )
    ]


def errors_of(statistics: Statistics) -> Mapping[str, float]:
    """How far off the energy of each module's leading directions may be, as a share of it.

    Args:
        statistics: Statistics with directions of gradients.

    Returns:
        Share per module name; 0 where the gradient itself was at hand.
    """
    errors = statistics.quantities.get("gradient_errors", {})
    return {name: float(error[0]) for name, error in errors.items()}


def _of_errors(name: str, statistics: Statistics) -> list[PlanWarning]:
    flat = [n for n, error in errors_of(statistics).items() if error > RESOLVED_ERROR]
    if not flat:
        return []
    return [
        PlanWarning(
            "directions_unresolved",
            f"the gradients of {len(flat)} modules, such as {flat[0]}, are too flat for the "
            f"sketch that initial weights {name} are made of: measure with a larger "
            "spectra_bytes, or take init kaiming",
        )
    ]
