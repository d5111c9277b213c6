"""The ranks of a plan alone, as fast as a slider moves: lists of numbers and not one name."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import mul
from pathlib import Path

from fimlora import RankPlan
from fimlora.adapter.config import padded_rank
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
    planned_names = [module.name for module in plan.modules]
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
    names = [module.name for module in plan.modules]
    costs = [module.cost for module in plan.modules]
    uniform = plan.controls.get("uniform")
    ranks = [plan.ranks[name] for name in names]
    return PlanDraft(
        job_id=job_id,
        budget={**asdict(plan.budget), "limit": plan.limit, "unspent": plan.unspent},
        method=plan.method,
        rule=plan.rule,
        r_min=plan.r_min,
        r_max=plan.r_max,
        spent={"ranks": sum(ranks), "parameters": sum(map(mul, costs, ranks))},
        ranks=[plan.ranks.get(name, 0) for name in places],
        scores=[plan.scores.get(name, 0.0) for name in places],
        uniform_ranks=None if uniform is None else [uniform.get(name, 0) for name in places],
        controls={
            name: _spending(control, names, costs)
            for name, control in sorted(plan.controls.items())
        },
    )


def _spending(
    control: Mapping[str, int], names: Sequence[str], costs: Sequence[int]
) -> DraftControl:
    ranks = [control[name] for name in names]
    return DraftControl(
        ranks=sum(ranks),
        parameters=sum(map(mul, costs, ranks)),
        lowest=min(ranks),
        highest=max(ranks),
    )
