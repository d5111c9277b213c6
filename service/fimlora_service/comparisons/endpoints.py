"""POST /compare: plans of several methods side by side, from one set of passes; no training.

A comparison is a job like any other. What has been measured already is compared at once, by
POST /jobs/{id}/compare.
"""

from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Response

from fimlora_contract.comparison_requests import ComparisonRequest, JobComparisonRequest
from fimlora_contract.comparisons import JobComparison
from fimlora_contract.digests import digest_of
from fimlora_contract.estimates import Estimate
from fimlora_contract.jobs import Job, JobKind
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.results.store import STATISTICS
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
from fimlora_service.calibrations.estimate import estimate_of
from fimlora_service.calibrations.submission import Submission
from fimlora_service.comparisons.openapi_examples import (
    COMPARISON_EXAMPLES,
    JOB_COMPARISON_EXAMPLES,
)
from fimlora_service.http.dependencies import (
    ArtifactsDep,
    PrefixDep,
    SettingsDep,
    StoreDep,
    problems,
    require_json,
)
from fimlora_service.jobs.long_poll import LongPollDep
from fimlora_service.keys.access import JobId
from fimlora_service.keys.principal import READS, SUBMITS
from fimlora_service.keys.routes import ScopedRoute
from fimlora_service.operations.metrics import MetricsDep
from fimlora_service.resolve.resolver import Resolved, Resolver
from fimlora_service.results.reading import find_artifact, result_of, usable

# Raise it with every change after which equal statistics are compared in another way.
COMPARING = 1
router = APIRouter(tags=["jobs"], route_class=ScopedRoute)


@router.post(
    "/compare",
    status_code=202,
    response_model=Job,
    dependencies=[SUBMITS, Depends(require_json)],
    response_description="The comparison is queued; poll the address in Location.",
    responses={
        200: {
            "model": Job | Estimate,
            "description": "An equal request had already succeeded; the job has ended within "
            "the time to wait; or, with `validate_only`, an estimate and no job.",
        },
        **problems(*REFUSALS, *NOT_NOW),
    },
)
async def compare(
    body: Annotated[ComparisonRequest, Body(openapi_examples=COMPARISON_EXAMPLES)],
    submission: SubmissionDep,
    limit: SubmissionLimitDep,
    metrics: MetricsDep,
    long_poll: LongPollDep,
    prefix: PrefixDep,
    response: Response,
    idempotency_key: KeyHeader = None,
    prefer: PreferHeader = [],  # noqa: B006 - FastAPI copies defaults
) -> Any:
    """Measure once, plan by several methods, and say how alike the plans are."""
    if body.validate_only:
        made = await limit.run(body, partial(make_estimate, body, submission))
        return Response(made.model_dump_json(), media_type="application/json")
    accept = partial(
        submission.accept,
        body,
        key=idempotency_key,
        kind=JobKind.COMPARISON,
        resolve=partial(resolve, submission.resolver),
    )
    accepted = await limit.run(body, accept)
    metrics.accepted.labels(accepted.outcome).inc()
    record = await answer_to(accepted, prefer, long_poll, response, at=f"{prefix}/jobs")
    return record.to_job(prefix=prefix, cached=accepted.cached)


@router.post(
    "/jobs/{id}/compare",
    response_model=JobComparison,
    dependencies=[READS, Depends(require_json)],
    responses=problems(
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
    ),
)
def compare_job(
    id: JobId,
    body: Annotated[JobComparisonRequest, Body(openapi_examples=JOB_COMPARISON_EXAMPLES)],
    store: StoreDep,
    settings: SettingsDep,
    artifacts: ArtifactsDep,
) -> Response:
    """Compare methods by what a job has measured; no device and no queue."""
    from fimlora_service.comparisons.comparing import compare_again

    result = result_of(usable(store.shown(id), settings.allowed).to_job())
    find_artifact(result, STATISTICS)
    found = compare_again(id, body, path=artifacts.local(result.digest, STATISTICS))
    # Not left to the framework, which would check every module once more.
    return Response(found.model_dump_json(), media_type="application/json")


def make_estimate(request: ComparisonRequest, submission: Submission) -> Estimate:
    """Resolve a request and sum up what is known.

    Raises:
        ServiceError: POST /compare would refuse it, too.
    """
    submission.check_webhook(request)
    resolved = resolve(submission.resolver, request)
    return estimate_of(request, resolved, submission)


def resolve(resolver: Resolver, request: CalibrationRequest) -> Resolved:
    """Pin a comparison to content; what is measured for it may serve other requests."""
    resolved = resolver.resolve(request)
    content = {
        "comparing": COMPARING,
        "planned": resolved.digest,
        "methods": request.methods_measured,
    }
    return replace(resolved, digest=digest_of(content))
