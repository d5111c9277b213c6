"""Jobs: where they stand, how they ended, and what they delivered."""

import asyncio
import time
from dataclasses import dataclass
from threading import Event
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from fimlora_contract.artifacts import ArtifactPage
from fimlora_contract.base import AnswerModel
from fimlora_contract.jobs import CalibrationResult, Job, JobPage, JobStatus
from fimlora_jobs.store import JobOpen, JobStore, StaleAttempt
from fimlora_service import errors
from fimlora_service.http.dependencies import (
    ArtifactsDep,
    JobId,
    JobViewsDep,
    PrefixDep,
    SettingsDep,
    StoppingDep,
    StoreDep,
    problems,
)
from fimlora_service.http.headers import matches
from fimlora_service.http.strict_queries import StrictQueryRoute
from fimlora_service.settings import Settings

RETRY_AFTER_S = 2
router = APIRouter(tags=["jobs"], route_class=StrictQueryRoute)


@router.get("/jobs", responses=problems(errors.ValidationFailed, errors.RedisUnavailable))
def list_jobs(
    store: StoreDep,
    prefix: PrefixDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(pattern=r"^job_[0-9a-f]{23}$")] = None,
) -> JobPage:
    """List jobs, the newest first."""
    records = store.page(limit=limit + 1, before=cursor)
    more = records[limit - 1].id if len(records) > limit else None
    jobs = [record.to_job(prefix=prefix) for record in records[:limit]]
    return JobPage(data=jobs, next_cursor=more)


@router.get(
    "/jobs/{id}",
    response_model=Job,
    responses={
        304: {"description": "Nothing has changed since the client's copy."},
        **problems(errors.JobNotFound, errors.ValidationFailed, errors.RedisUnavailable),
    },
)
async def retrieve_job(
    id: JobId,
    request: Request,
    store: StoreDep,
    views: JobViewsDep,
    settings: SettingsDep,
    stopping: StoppingDep,
    prefix: PrefixDep,
    wait: Annotated[
        float, Query(ge=0, le=60, description="Seconds to wait for the job's end.")
    ] = 0,
) -> Response:
    """Report where a job stands; with ``wait`` as soon as it has ended."""
    if wait:
        await Patience(request, settings, stopping).wait_for_end(id, store, at_most_s=wait)
    view = await run_in_threadpool(views.get, id, prefix=prefix)
    headers = {"ETag": f'"{view.digest}"', "Cache-Control": "no-cache"}
    if not view.is_final:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if matches(request.headers.get("if-none-match", ""), view.digest):
        return Response(status_code=304, headers=headers)
    return Response(view.body, media_type="application/json", headers=headers)


@dataclass(frozen=True, slots=True)
class Patience:
    """How a request waits: not when the client has gone or the service stops."""

    request: Request
    settings: Settings
    stopping: Event

    async def wait_for_end(self, id: str, store: JobStore, *, at_most_s: float) -> None:
        """Return when the job has ended, or when waiting on makes no sense."""
        deadline = time.monotonic() + at_most_s
        while not (await run_in_threadpool(store.status_of, id)).is_final:
            if time.monotonic() >= deadline or self.stopping.is_set():
                return
            if await self.request.is_disconnected():
                return
            await asyncio.sleep(self.settings.poll_interval_s)


@router.post(
    "/jobs/{id}/cancel",
    status_code=202,
    response_description="The job is asked to stop.",
    responses={
        200: {
            "model": Job,
            "description": "The job is canceled, or goes on for equal requests that share it.",
        },
        **problems(
            errors.JobNotFound,
            errors.JobAlreadyFinished,
            errors.ValidationFailed,
            errors.RedisUnavailable,
        ),
    },
)
def cancel_job(id: JobId, store: StoreDep, prefix: PrefixDep, response: Response) -> Job:
    """Cancel a queued job at once, or ask a running one to stop.

    A job that several equal requests share goes on until each has been taken back.
    """
    try:
        status = store.withdraw(id)
    except StaleAttempt as stale:
        raise errors.JobAlreadyFinished(
            f"job {id!r} has already ended: it is {stale.status}"
        ) from stale
    if status is not JobStatus.CANCELING:
        response.status_code = 200
    else:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return store.shown(id).to_job(prefix=prefix)


@router.delete(
    "/jobs/{id}",
    status_code=204,
    responses=problems(
        errors.JobNotFound,
        errors.JobNotFinished,
        errors.ValidationFailed,
        errors.RedisUnavailable,
    ),
)
def delete_job(id: JobId, store: StoreDep) -> None:
    """Forget a job that has ended; results that are pinned or shared stay."""
    try:
        store.delete(id)
    except JobOpen as error:
        raise errors.JobNotFinished(f"{error}; cancel it first") from error


RESULT_RESPONSES: dict[int | str, dict[str, Any]] = {
    304: {"description": "The client's copy is the result; a result never changes."},
    **problems(
        errors.JobNotFound,
        errors.JobNotFinished,
        errors.JobFailed,
        errors.JobCanceled,
        errors.ResultExpired,
        errors.ValidationFailed,
        errors.RedisUnavailable,
    ),
}


@router.get("/jobs/{id}/artifacts", response_model=ArtifactPage, responses=RESULT_RESPONSES)
def list_artifacts(
    id: JobId, request: Request, store: StoreDep, artifacts: ArtifactsDep, prefix: PrefixDep
) -> Response:
    """List the files of a result with their digests and links."""
    result = result_of(store.shown(id).to_job(prefix=prefix))
    artifacts.use(result.digest)
    return tagged(request, ArtifactPage(data=result.artifacts), digest=result.digest)


@router.get("/jobs/{id}/result", response_model=CalibrationResult, responses=RESULT_RESPONSES)
def retrieve_result(
    id: JobId, request: Request, store: StoreDep, artifacts: ArtifactsDep, prefix: PrefixDep
) -> Response:
    """Deliver what a succeeded job found."""
    result = result_of(store.shown(id).to_job(prefix=prefix))
    artifacts.use(result.digest)
    return tagged(request, result, digest=result.digest)


def tagged(request: Request, body: AnswerModel, *, digest: str) -> Response:
    """An answer whose tag is the content address of the result it tells of."""
    headers = {"ETag": f'"{digest}"', "Cache-Control": "no-cache"}
    if matches(request.headers.get("if-none-match", ""), digest):
        return Response(status_code=304, headers=headers)
    return Response(body.model_dump_json(), media_type="application/json", headers=headers)


def result_of(job: Job) -> CalibrationResult:
    """The result of a job, or the reason why there is none."""
    if job.result is not None:
        return job.result
    if job.status is JobStatus.CANCELED:
        raise errors.JobCanceled(f"job {job.id!r} was canceled")
    if job.error is not None:
        raise errors.JobFailed(f"job {job.id!r} failed: {job.error.code}: {job.error.detail}")
    raise errors.JobNotFinished(f"job {job.id!r} is {job.status}")
