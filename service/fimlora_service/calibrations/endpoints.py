"""POST /calibrate: pin the request to content, put it on record, queue it, answer at once.

POST /estimate goes the same way up to the record.
"""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Response

from fimlora_contract.estimates import Estimate
from fimlora_contract.jobs import Job
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.record import JobRecord
from fimlora_service import errors
from fimlora_service.calibrations.estimate import make_estimate
from fimlora_service.calibrations.job_spec import Accepted
from fimlora_service.calibrations.openapi_examples import CALIBRATION_EXAMPLES
from fimlora_service.calibrations.submission import Submission
from fimlora_service.calibrations.submission_limit import SubmissionLimit
from fimlora_service.http.dependencies import PrefixDep, part, problems, require_json
from fimlora_service.http.headers import RETRY_AFTER_S, wait_preference
from fimlora_service.jobs.long_poll import LongPoll, LongPollDep
from fimlora_service.keys.access import JobId
from fimlora_service.keys.principal import SUBMITS, PrincipalDep
from fimlora_service.keys.routes import ScopedRoute
from fimlora_service.operations.metrics import MetricsDep

# What is wrong with a body, however it is submitted.
REFUSALS = (
    errors.MalformedRequest,
    errors.WebhookNotAllowed,
    errors.ModelNotAllowed,
    errors.SourceNotAllowed,
    errors.DatasetNotFound,
    errors.PayloadTooLarge,
    errors.UnsupportedMediaType,
    errors.ValidationFailed,
    errors.UnsupportedArchitecture,
    errors.BudgetInfeasible,
    errors.DatasetSchema,
    errors.DatasetEmpty,
    errors.UnsafeWeights,
    errors.ModelNotFound,
    errors.ModelGated,
    errors.DatasetUnreachable,
    errors.AdapterNotFound,
    errors.AdapterInvalid,
    errors.HubUnreachable,
    errors.StorageUnavailable,
    errors.RedisUnavailable,
    errors.DiskFull,
)
# What else may keep a sound one from being carried out.
NOT_NOW = (
    errors.IdempotencyInFlight,
    errors.IdempotencyMismatch,
    errors.QueueFull,
    errors.QuotaExceeded,
)
router = APIRouter(tags=["jobs"], route_class=ScopedRoute)


async def _submission(
    principal: PrincipalDep, submission: Annotated[Submission, part("submission")]
) -> Submission:
    return submission.of(principal)


SubmissionDep = Annotated[Submission, Depends(_submission)]
SubmissionLimitDep = Annotated[SubmissionLimit, part("submission_limit")]
RequestBody = Annotated[CalibrationRequest, Body(openapi_examples=CALIBRATION_EXAMPLES)]
PreferHeader = Annotated[
    list[str],
    Header(
        alias="Prefer",
        description="`wait=N`: answer when the job has ended, or after N seconds, at most 60.",
    ),
]
KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[ -~]{1,255}$",
        description="Repeat a request under one key, and it is carried out once.",
    ),
]


@router.post(
    "/calibrate",
    status_code=202,
    response_model=Job,
    dependencies=[SUBMITS, Depends(require_json)],
    response_description="The job is queued; poll the address in Location.",
    responses={
        200: {
            "model": Job | Estimate,
            "description": "An equal request had already succeeded; the job has ended within "
            "the time to wait; or, with `validate_only`, an estimate and no job.",
        },
        **problems(*REFUSALS, *NOT_NOW),
    },
)
async def calibrate(
    body: RequestBody,
    submission: SubmissionDep,
    limit: SubmissionLimitDep,
    metrics: MetricsDep,
    long_poll: LongPollDep,
    prefix: PrefixDep,
    response: Response,
    idempotency_key: KeyHeader = None,
    prefer: PreferHeader = [],  # noqa: B006 - FastAPI copies defaults
) -> Any:
    """Queue a calibration and answer at once, or once it has ended if the client waits."""
    if body.validate_only:
        made = await limit.run(body, partial(make_estimate, body, submission))
        return Response(made.model_dump_json(), media_type="application/json")
    accept = partial(submission.accept, body, key=idempotency_key)
    accepted = await limit.run(body, accept)
    metrics.accepted.labels(accepted.outcome).inc()
    record = await answer_to(accepted, prefer, long_poll, response, at=f"{prefix}/jobs")
    return record.to_job(prefix=prefix, cached=accepted.cached)


async def answer_to(
    accepted: Accepted, prefer: list[str], long_poll: LongPoll, response: Response, *, at: str
) -> JobRecord:
    """The record to answer with, after the wait that the client wants; status and headers.

    Args:
        accepted: What became of the request.
        prefer: The values of its ``Prefer`` headers.
        long_poll: Waits.
        response: Gets the headers.
        at: Where jobs of this kind are.
    """
    record, wait = accepted.record, wait_preference(prefer)
    if wait is not None:
        response.headers["Preference-Applied"] = f"wait={wait}"
        # The job is accepted, whatever becomes of the wait.
        record = await long_poll.follow(record, at_most_s=wait)
    response.headers["Location"] = f"{at}/{record.id}"
    if accepted.cached or (wait is not None and record.status.is_final):
        response.status_code = 200
    elif not record.status.is_final:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return record


@router.post(
    "/estimate", dependencies=[SUBMITS, Depends(require_json)], responses=problems(*REFUSALS)
)
async def estimate(
    body: RequestBody, submission: SubmissionDep, limit: SubmissionLimitDep
) -> Estimate:
    """Check a request as POST /calibrate does and say what it would need; nothing is queued."""
    return await limit.run(body, partial(make_estimate, body, submission))


@router.post(
    "/jobs/{id}/retry",
    dependencies=[SUBMITS],
    status_code=202,
    response_description="A new job is queued; poll the address in Location.",
    responses=problems(
        errors.ModelNotAllowed,
        errors.SourceNotAllowed,
        errors.JobNotFound,
        errors.JobNotFinished,
        errors.JobAlreadyFinished,
        *NOT_NOW,
        errors.ValidationFailed,
        errors.StorageUnavailable,
        errors.RedisUnavailable,
        errors.DiskFull,
    ),
)
def retry_job(
    id: JobId,
    submission: SubmissionDep,
    prefix: PrefixDep,
    response: Response,
    idempotency_key: KeyHeader = None,
) -> Job:
    """Queue the request of a failed or canceled job once more, on the same content."""
    again = submission.repeat(submission.store.get(id), key=idempotency_key)
    response.headers["Location"] = f"{prefix}/jobs/{again.id}"
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return again.to_job(prefix=prefix)
