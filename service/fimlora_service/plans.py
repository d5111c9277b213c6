"""POST /jobs/{id}/allocate: another plan from a job's statistics, in this process, at once.

Nothing is queued and nothing is written: the answer tells what POST /calibrate would give.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Response

from fimlora import Budget, FimloraError, InfeasibleBudget, RankPlan, Statistics
from fimlora.errors import InvalidStatistics
from fimlora.replanning import Known, replan, replanned_config, rescaled
from fimlora.text_files import text_files
from fimlora_contract.digests import digest_bytes, digest_of
from fimlora_contract.jobs import CalibrationResult, Plan, RankMap
from fimlora_contract.requests import PlanRequest
from fimlora_service import errors
from fimlora_service.artifacts import find_artifact
from fimlora_service.calibrate import require_json
from fimlora_service.dependencies import ArtifactsDep, JobId, StoreDep, problems
from fimlora_service.examples import PLAN_EXAMPLES
from fimlora_service.jobs import result_of
from fimlora_service.queries import StrictQueryRoute

STATISTICS = "statistics.safetensors"
router = APIRouter(tags=["jobs"], route_class=StrictQueryRoute)


@router.post(
    "/jobs/{id}/allocate",
    response_model=Plan,
    dependencies=[Depends(require_json)],
    responses=problems(
        errors.MalformedRequest,
        errors.JobNotFound,
        errors.ArtifactNotFound,
        errors.ResultExpired,
        errors.StorageUnavailable,
        errors.JobNotFinished,
        errors.JobFailed,
        errors.JobCanceled,
        errors.PayloadTooLarge,
        errors.UnsupportedMediaType,
        errors.ValidationFailed,
        errors.BudgetInfeasible,
        errors.RedisUnavailable,
    ),
)
def allocate_again(
    id: JobId,
    body: Annotated[PlanRequest, Body(openapi_examples=PLAN_EXAMPLES)],
    store: StoreDep,
    artifacts: ArtifactsDep,
) -> Response:
    """Solve another plan from what a job has measured; no device and no queue."""
    result = result_of(store.shown(id).to_job())
    digest = find_artifact(result, STATISTICS).digest
    path = artifacts.local(result.digest, STATISTICS)
    known = known_of(result)
    try:
        statistics = Statistics.load(path, rule=body.allocation.rule)
        plan, config = solve(body, statistics, known)
        if statistics.scale != plan.scale:
            digest = digest_bytes(rescaled(Statistics.load(path), plan.scale).to_bytes())
    except InvalidStatistics as error:
        raise errors.ArtifactNotFound(f"{STATISTICS} of job {id!r} cannot be read") from error
    texts = text_files(plan, config, layout=body.adapter.layout)
    files = {name: digest_bytes(text) for name, text in texts.items()}
    again = Plan(
        job_id=id,
        digest=digest_of(files | {STATISTICS: digest}),
        adapter_config=config,
        rank_map=RankMap.model_validate_json(texts["rank_map.json"]),
    )
    # Not left to the framework, which would check the whole rank map once more.
    return Response(again.model_dump_json(), media_type="application/json")


def known_of(result: CalibrationResult) -> Known:
    """What a new plan takes from the one that was made when the model was at hand."""
    rank_map = result.rank_map
    modules = [{"name": module.name, "rank": module.rank} for module in rank_map.modules]
    facts = {"provenance": rank_map.provenance, "modules": modules}
    return Known(facts, result.adapter_config)


def solve(
    request: PlanRequest, statistics: Statistics, known: Known
) -> tuple[RankPlan, dict[str, Any]]:
    """The plan a request asks for, and its adapter config.

    Raises:
        BudgetInfeasible: No plan meets the budget.
        ValidationFailed: An option does not fit these statistics.
    """
    budget, adapter = request.budget, request.adapter
    try:
        plan = replan(
            statistics,
            known,
            Budget(budget.unit, budget.value, budget.bytes_per_parameter),
            scale=adapter.scale,
            **request.allocation.model_dump(),
        )
        return plan, replanned_config(plan, known, layout=adapter.layout)
    except InfeasibleBudget as error:
        raise errors.BudgetInfeasible(str(error)) from error
    except FimloraError as error:
        raise errors.ValidationFailed(str(error)) from error
