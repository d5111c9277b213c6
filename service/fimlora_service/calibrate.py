"""POST /calibrate: pin the request to content, put it on record, queue it, answer at once.

POST /estimate goes the same way up to the record.
"""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Request, Response

from fimlora_contract.estimates import Estimate
from fimlora_contract.jobs import Job
from fimlora_contract.requests import CalibrationRequest
from fimlora_service import errors
from fimlora_service.dependencies import (
    DataFolderDep,
    JobId,
    PrefixDep,
    ResolverDep,
    StoreDep,
    TransportDep,
    problems,
)
from fimlora_service.estimating import make_estimate
from fimlora_service.examples import CALIBRATION_EXAMPLES
from fimlora_service.submission import Submission

RETRY_AFTER_S = 2
# What is wrong with a body, however it is submitted.
REFUSALS = (
    errors.MalformedRequest,
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
    errors.HubUnreachable,
    errors.RedisUnavailable,
)
router = APIRouter(tags=["jobs"])


def require_json(request: Request) -> None:
    """Refuse a body that does not say it is JSON."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise errors.UnsupportedMediaType(f"content type {given!r}; expected application/json")


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
    dependencies=[Depends(require_json)],
    response_description="The job is queued; poll the address in Location.",
    responses={
        200: {"model": Job, "description": "An equal request had already succeeded."},
        **problems(
            *REFUSALS,
            errors.IdempotencyInFlight,
            errors.IdempotencyMismatch,
        ),
    },
)
def calibrate(
    body: Annotated[CalibrationRequest, Body(openapi_examples=CALIBRATION_EXAMPLES)],
    store: StoreDep,
    transport: TransportDep,
    resolver: ResolverDep,
    data_folder: DataFolderDep,
    prefix: PrefixDep,
    response: Response,
    idempotency_key: KeyHeader = None,
) -> Job:
    """Queue a calibration and answer at once."""
    submission = Submission(store, transport, resolver, data_folder)
    accepted = submission.accept(body, key=idempotency_key)
    response.headers["Location"] = f"{prefix}/jobs/{accepted.record.id}"
    if accepted.cached:
        response.status_code = 200
    elif not accepted.record.status.is_final:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return accepted.record.to_job(prefix=prefix, cached=accepted.cached)


@router.post("/estimate", dependencies=[Depends(require_json)], responses=problems(*REFUSALS))
def estimate(
    body: Annotated[CalibrationRequest, Body(openapi_examples=CALIBRATION_EXAMPLES)],
    store: StoreDep,
    transport: TransportDep,
    resolver: ResolverDep,
    data_folder: DataFolderDep,
) -> Estimate:
    """Check a request as POST /calibrate does and say what it would need; nothing is queued."""
    return make_estimate(body, Submission(store, transport, resolver, data_folder))


@router.post(
    "/jobs/{id}/retry",
    status_code=202,
    response_description="A new job is queued; poll the address in Location.",
    responses=problems(
        errors.JobNotFound,
        errors.JobNotFinished,
        errors.JobAlreadyFinished,
        errors.ValidationFailed,
        errors.RedisUnavailable,
    ),
)
def retry_job(
    id: JobId,
    store: StoreDep,
    transport: TransportDep,
    resolver: ResolverDep,
    data_folder: DataFolderDep,
    prefix: PrefixDep,
    response: Response,
) -> Job:
    """Queue the request of a failed or canceled job once more, on the same content."""
    submission = Submission(store, transport, resolver, data_folder)
    again = submission.repeat(store.get(id))
    response.headers["Location"] = f"{prefix}/jobs/{again.id}"
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return again.to_job(prefix=prefix)
