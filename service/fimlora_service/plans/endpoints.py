"""POST /jobs/{id}/allocate and /sweep: plans from a job's statistics, in this process, at once.

Nothing is queued and nothing is written: the answers tell what POST /calibrate would give.
"""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Response

from fimlora_contract.plans import Plan, PlanDraft
from fimlora_contract.requests import PlanRequest
from fimlora_contract.sweeps import Sweep, SweepRequest
from fimlora_jobs.results.store import STATISTICS
from fimlora_service import errors
from fimlora_service.http.dependencies import (
    ArtifactsDep,
    SettingsDep,
    StoreDep,
    part,
    problems,
    require_json,
)
from fimlora_service.http.headers import wants_minimal
from fimlora_service.keys.access import JobId
from fimlora_service.keys.principal import READS
from fimlora_service.keys.routes import ScopedRoute
from fimlora_service.plans.measured_jobs import MeasuredJobs
from fimlora_service.plans.openapi_examples import PLAN_EXAMPLES, SWEEP_EXAMPLES
from fimlora_service.plans.score_cache import ScoreCache
from fimlora_service.results.reading import find_artifact, result_of, usable

MeasuredJobsDep = Annotated[MeasuredJobs, part("measured_jobs")]
ScoreCacheDep = Annotated[ScoreCache, part("score_cache")]
ReturnHeader = Annotated[
    list[str],
    Header(
        alias="Prefer",
        description="`return=minimal`: answer with the ranks alone, several times as fast.",
    ),
]
router = APIRouter(tags=["jobs"], route_class=ScopedRoute)
# What may be wrong with a request for plans of what a job has measured.
REFUSALS = (
    errors.MalformedRequest,
    errors.ModelNotAllowed,
    errors.SourceNotAllowed,
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
)


@router.post(
    "/jobs/{id}/allocate",
    response_model=Plan | PlanDraft,
    response_description="The plan; with `return=minimal` its ranks alone.",
    dependencies=[READS, Depends(require_json)],
    responses=problems(*REFUSALS, errors.NoPattern),
)
def allocate_again(
    id: JobId,
    body: Annotated[PlanRequest, Body(openapi_examples=PLAN_EXAMPLES)],
    measured_jobs: MeasuredJobsDep,
    artifacts: ArtifactsDep,
    score_cache: ScoreCacheDep,
    prefer: ReturnHeader = [],  # noqa: B006 - FastAPI copies defaults
) -> Response:
    """Solve another plan from what a job has measured; no device and no queue."""
    from fimlora_service.plans.drafting import draft_again
    from fimlora_service.plans.solving import solve_again

    result = measured_jobs.result(id)
    digest = find_artifact(result, STATISTICS).digest
    path = artifacts.local(result.digest, STATISTICS)
    is_draft = wants_minimal(prefer)
    solve = draft_again if is_draft else solve_again
    again = solve(id, body, result, path=path, digest=digest, score_cache=score_cache)
    # Not left to the framework, which would check the whole rank map once more.
    return Response(
        again.model_dump_json(),
        media_type="application/json",
        headers={"Preference-Applied": "return=minimal"} if is_draft else None,
    )


@router.post(
    "/jobs/{id}/sweep",
    response_model=Sweep,
    dependencies=[READS, Depends(require_json)],
    responses=problems(*REFUSALS),
)
def sweep_job(
    id: JobId,
    body: Annotated[SweepRequest, Body(openapi_examples=SWEEP_EXAMPLES)],
    store: StoreDep,
    settings: SettingsDep,
    artifacts: ArtifactsDep,
) -> Response:
    """Plan under several settings from what a job has measured; no device and no queue."""
    from fimlora_service.plans.sweeping import sweep_again

    result = result_of(usable(store.shown(id), settings.allowed).to_job())
    find_artifact(result, STATISTICS)
    found = sweep_again(id, body, path=artifacts.local(result.digest, STATISTICS))
    return Response(found.model_dump_json(), media_type="application/json")
