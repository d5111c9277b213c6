"""The ranks of a plan alone, as fast as a slider moves: lists of numbers and not one name."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np

from fimlora import RankPlan
from fimlora.adapter.config import padded_rank
from fimlora.allocation.listed import Listed
from fimlora.allocation.named_ranks import NamedRanks
from fimlora.allocation.units import Ranks
from fimlora_contract.jobs import CalibrationResult
from fimlora_contract.plans import DraftControl, PlanDraft
from fimlora_contract.requests import PlanRequest
from fimlora_jobs.results.store import STATISTICS
from fimlora_service import errors
from fimlora_service.plans.score_cache import ScoreCache
from fimlora_service.plans.solving import (
    planned,
    refusing,
    scored_statistics,
    written_adapter,
)

Value = TypeVar("Value", int, float)


def draft_again(
    job_id: str,
    request: PlanRequest,
    result: CalibrationResult,
    *,
    path: Path,
    digest: str,
    score_cache: ScoreCache,
) -> PlanDraft:
    """The ranks of the plan that `solve_again` would give: some twentieth of its work.

    Args:
        job_id: The job that has measured.
        request: The settings.
        result: What that job found.
        path: The file of its statistics.
        digest: Of that file.
        score_cache: What is known of such files.

    Raises:
        ServiceError: The file cannot be read, or the settings do not fit it.
    """
    scored = scored_statistics(
        job_id, request, path=path, digest=digest, score_cache=score_cache
    )
    with refusing():
        plan = planned(request, scored, written_adapter(result))
        if request.adapter.layout == "C":
            padded_rank(plan)  # refused where nothing is wide enough
    names = [module.name for module in result.rank_map.modules]
    _check_places(names, plan, result, job_id)
    return draft_of(plan, job_id, names)


def _check_places(
    names: Sequence[str], plan: RankPlan, result: CalibrationResult, job_id: str
) -> None:
    """Refuse ranks by place where places are not the plan's modules.

    Experts that are modules of their own are in a plan or not, as they are selected: one that is
    in the rank map alone gets no rank, and one that is in the plan alone has no place.
    """
    planned_names = Listed.of(plan.modules).names
    if planned_names == names:
        return
    placed = frozenset(names)
    without_place = frozenset(planned_names) - placed
    if without_place and without_place <= result.rank_map.not_targeted.keys():
        raise errors.ValidationFailed(
            f"it gives ranks to {len(without_place)} modules that the rank map of job {job_id!r} has "
            "left out, for which a draft has no place",
            next_step="Ask without 'Prefer: return=minimal'.",
        )
    known = frozenset(planned_names)
    if [name for name in names if name in known] != planned_names or not (
        placed <= known | plan.not_targeted.keys()
    ):
        raise errors.ArtifactNotFound(
            f"{STATISTICS} of job {job_id!r} is of other modules than its rank map"
        )


def draft_of(plan: RankPlan, job_id: str, places: Sequence[str]) -> PlanDraft:
    """A plan as lists in the order of modules, some of which may be none of its own."""
    modules = Listed.of(plan.modules)
    ranks = _in_order(plan.ranks, modules.names)
    controls = {name: _control(plan, name) for name in sorted(plan.controls)}
    spent = {"ranks": int(ranks.sum()), "parameters": int(modules.costs @ ranks)}
    unspent = plan.limit - spent["ranks" if plan.budget.unit == "rank" else "parameters"]
    order = None if places == modules.names else places
    return PlanDraft(
        job_id=job_id,
        budget={**asdict(plan.budget), "limit": plan.limit, "unspent": unspent},
        method=plan.method,
        rule=plan.rule,
        r_min=plan.r_min,
        r_max=plan.r_max,
        spent=spent,
        ranks=_placed(ranks.tolist(), modules.names, order, 0),
        scores=_placed(
            [*map(plan.scores.__getitem__, modules.names)], modules.names, order, 0.0
        ),
        uniform_ranks=_placed(controls["uniform"].tolist(), modules.names, order, 0)
        if "uniform" in controls
        else None,
        controls={
            name: DraftControl(
                ranks=int(of_all.sum()),
                parameters=int(modules.costs @ of_all),
                lowest=int(of_all.min()),
                highest=int(of_all.max()),
            )
            for name, of_all in controls.items()
        },
    )


def _control(plan: RankPlan, name: str) -> Ranks:
    """Ranks of a control in the order of the plan's modules."""
    if isinstance(plan.controls, NamedRanks):
        return plan.controls.table(name)
    return _in_order(plan.controls[name], Listed.of(plan.modules).names)


def _in_order(ranks: Mapping[str, int], names: Sequence[str]) -> Ranks:
    return np.fromiter(map(ranks.__getitem__, names), dtype=np.int64, count=len(names))


def _placed(
    values: list[Value], names: Sequence[str], places: Sequence[str] | None, none: Value
) -> list[Value]:
    """Values of modules in the order of places, where that is another one."""
    if places is None:
        return values
    by_name = dict(zip(names, values, strict=True))
    return [by_name.get(name, none) for name in places]
