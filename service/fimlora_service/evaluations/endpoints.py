"""POST /evaluations: whether a choice of ranks helps on a task, found out by training.

An evaluation is a job: what is asked of jobs, from events to cancel, is asked of it under
/jobs/{id} all the same.
"""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response

from fimlora_contract.estimates import EvaluationEstimate
from fimlora_contract.evaluations import Evaluation, EvaluationPage, EvaluationRequest
from fimlora_contract.jobs import JobKind
from fimlora_jobs.job_filter import JobFilter
from fimlora_jobs.record import JobRecord
from fimlora_jobs.store import JobStore
from fimlora_service import errors
from fimlora_service.calibrations.endpoints import (
    NOT_NOW,
    REFUSALS,
    KeyHeader,
    PreferHeader,
    SubmissionDep,
    SubmissionLimitDep,
    answer_to,
)
from fimlora_service.evaluations.estimate import make_estimate
from fimlora_service.evaluations.openapi_examples import EVALUATION_EXAMPLES
from fimlora_service.evaluations.resolving import EvaluationResolver
from fimlora_service.http.dependencies import (
    PrefixDep,
    StoreDep,
    problems,
    require_json,
)
from fimlora_service.http.threads import Threads, in_thread
from fimlora_service.jobs.endpoints import (
    CursorQuery,
    JobViewsDep,
    LimitQuery,
    WaitQuery,
    page_of,
    view_of,
)
from fimlora_service.jobs.long_poll import LongPollDep
from fimlora_service.keys.access import JobId, Whose
from fimlora_service.keys.principal import READS, SUBMITS, PrincipalDep
from fimlora_service.keys.routes import ScopedRoute
from fimlora_service.operations.metrics import MetricsDep

EVALUATIONS = JobFilter(kind=JobKind.EVALUATION)
router = APIRouter(tags=["evaluations"], route_class=ScopedRoute)
RequestBody = Annotated[EvaluationRequest, Body(openapi_examples=EVALUATION_EXAMPLES)]


@router.post(
    "/evaluations",
    status_code=202,
    response_model=Evaluation,
    dependencies=[SUBMITS, Depends(require_json)],
    response_description="The evaluation is queued; poll the address in Location.",
    responses={
        200: {
            "model": Evaluation | EvaluationEstimate,
            "description": "An equal request had already succeeded; the job has ended within "
            "the time to wait; or, with `validate_only`, an estimate and no job.",
        },
        **problems(
            *REFUSALS,
            errors.JobNotFound,
            errors.JobNotFinished,
            errors.JobFailed,
            errors.JobCanceled,
            errors.NoPattern,
            errors.ResultExpired,
            *NOT_NOW,
        ),
    },
)
async def evaluate(
    body: RequestBody,
    submission: SubmissionDep,
    limit: SubmissionLimitDep,
    metrics: MetricsDep,
    long_poll: LongPollDep,
    prefix: PrefixDep,
    principal: PrincipalDep,
    response: Response,
    idempotency_key: KeyHeader = None,
    prefer: PreferHeader = [],  # noqa: B006 - FastAPI copies defaults
) -> Any:
    """Train plans beside uniform and random ranks at equal parameters, and say which helps."""
    resolver = EvaluationResolver(
        submission.resolver, submission.store, submission.artifacts, principal
    )
    if body.validate_only:
        made = await limit.run(body, partial(make_estimate, body, submission, resolver))
        return Response(made.model_dump_json(), media_type="application/json")
    accept = partial(
        submission.accept,
        body,
        key=idempotency_key,
        kind=JobKind.EVALUATION,
        resolve=lambda _: resolver.resolve(body),
    )
    accepted = await limit.run(body, accept)
    metrics.accepted.labels(accepted.outcome).inc()
    at = f"{prefix}/evaluations"
    record = await answer_to(accepted, prefer, long_poll, response, at=at)
    return shown(record, prefix=prefix, cached=accepted.cached)


@router.get(
    "/evaluations",
    dependencies=[READS],
    responses=problems(errors.ValidationFailed, errors.RedisUnavailable),
)
def list_evaluations(
    store: StoreDep,
    prefix: PrefixDep,
    whose: Whose,
    limit: LimitQuery = 20,
    cursor: CursorQuery = None,
) -> EvaluationPage:
    """List evaluations, the newest first."""
    records, more = page_of(store, whose=whose, limit=limit, cursor=cursor, wanted=EVALUATIONS)
    found = [shown(record, prefix=prefix) for record in records]
    return EvaluationPage(data=found, next_cursor=more)


@router.get(
    "/evaluations/{id}",
    dependencies=[READS],
    response_model=Evaluation,
    responses={
        304: {"description": "Nothing has changed since the client's copy."},
        **problems(errors.JobNotFound, errors.ValidationFailed, errors.RedisUnavailable),
    },
)
async def retrieve_evaluation(
    id: JobId,
    request: Request,
    store: StoreDep,
    views: JobViewsDep,
    long_poll: LongPollDep,
    prefix: PrefixDep,
    wait: WaitQuery = 0,
) -> Response:
    """Report where an evaluation stands, and what it found once it has succeeded."""
    await in_thread(Threads.LOOKS, check_kind, store, id)
    return await view_of(id, request, views, long_poll, prefix=prefix, wait=wait)


def check_kind(store: JobStore, job_id: str) -> None:
    """Refuse a job that is no evaluation."""
    kind = store.shown(job_id).kind
    if kind is not JobKind.EVALUATION:
        raise errors.JobNotFound(
            f"job {job_id!r} is of kind {kind}, no evaluation; GET /jobs/{job_id} shows it"
        )


def shown(record: JobRecord, *, prefix: str, cached: bool = False) -> Evaluation:
    """An evaluation as clients see it."""
    return Evaluation.model_validate(dict(record.to_job(prefix=prefix, cached=cached)))
