"""Jobs: listed, looked at, followed, taken back, forgotten."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse

from fimlora_contract.jobs import Job, JobEventPage, JobKind, JobPage, JobStatus
from fimlora_jobs.job_filter import JobFilter
from fimlora_jobs.record import JobRecord
from fimlora_jobs.results.kept_records import KeptRecords
from fimlora_jobs.store import JobOpen, JobStore, StaleAttempt
from fimlora_service import errors
from fimlora_service.http.dependencies import (
    ArtifactsDep,
    PrefixDep,
    SettingsDep,
    StoppingDep,
    StoreDep,
    part,
    problems,
)
from fimlora_service.http.headers import RETRY_AFTER_S, has_copy
from fimlora_service.http.threads import Threads, in_thread
from fimlora_service.http.waiting import WaitingRoomDep, client_of
from fimlora_service.jobs.cached_answers import JobViews
from fimlora_service.jobs.event_stream import (
    EVENT_SCHEMA,
    STREAM,
    Pace,
    follow,
    read_page,
    wants_page,
)
from fimlora_service.jobs.long_poll import LongPoll, LongPollDep
from fimlora_service.keys.access import JobId, Whose
from fimlora_service.keys.principal import CANCELS, READS
from fimlora_service.keys.routes import ScopedRoute

EVENT_ID = r"^[0-9]{1,19}(-[0-9]{1,19})?$"
# Empty is as good as absent: so says an event source that has seen no id.
LAST_EVENT_ID = r"^([0-9]{1,19}(-[0-9]{1,19})?)?$"
WaitQuery = Annotated[
    float, Query(ge=0, le=60, description="Seconds to wait for the job's end.")
]
LimitQuery = Annotated[int, Query(ge=1, le=100)]
CursorQuery = Annotated[str | None, Query(pattern=r"^job_[0-9a-f]{23}$")]
# As in a request's metadata, whose keys may hold no more.
Label = Annotated[str, Query(pattern=r"^[^=]{1,64}=", max_length=577)]
JobViewsDep = Annotated[JobViews, part("job_views")]
router = APIRouter(tags=["jobs"], route_class=ScopedRoute)


@router.get(
    "/jobs",
    dependencies=[READS],
    responses=problems(errors.ValidationFailed, errors.RedisUnavailable),
)
def list_jobs(
    store: StoreDep,
    prefix: PrefixDep,
    whose: Whose,
    limit: LimitQuery = 20,
    cursor: CursorQuery = None,
    kind: Annotated[JobKind | None, Query(description="Jobs of this kind only.")] = None,
    status: Annotated[
        list[JobStatus] | None,
        Query(description="In this status only; repeated, in one of them.", max_length=6),
    ] = None,
    label: Annotated[
        list[Label] | None,
        Query(
            description="With this `KEY=VALUE` in its metadata; repeated, with each of them.",
            max_length=16,
        ),
    ] = None,
    model: Annotated[
        str | None,
        Query(
            max_length=256,
            description="Of this base model, named as in a request; without a revision, of any.",
        ),
    ] = None,
) -> JobPage:
    """List jobs, the newest first; of several filters all must hold."""
    labels = dict(text.split("=", 1) for text in label or ())
    wanted = JobFilter(kind, frozenset(status or ()), labels, model)
    records, more = page_of(store, whose=whose, limit=limit, cursor=cursor, wanted=wanted)
    jobs = [record.to_job(prefix=prefix) for record in records]
    return JobPage(data=jobs, next_cursor=more)


def page_of(
    store: JobStore,
    *,
    whose: str | None,
    limit: int,
    cursor: str | None,
    wanted: JobFilter,
) -> tuple[list[JobRecord], str | None]:
    """The records of a page, and where the next one begins if there is one."""
    records = store.page(limit=limit + 1, before=cursor, wanted=wanted, owner=whose)
    return records[:limit], records[limit - 1].id if len(records) > limit else None


@router.get(
    "/jobs/{id}",
    dependencies=[READS],
    response_model=Job,
    responses={
        304: {"description": "Nothing has changed since the client's copy."},
        **problems(errors.JobNotFound, errors.ValidationFailed, errors.RedisUnavailable),
    },
)
async def retrieve_job(
    id: JobId,
    request: Request,
    views: JobViewsDep,
    long_poll: LongPollDep,
    prefix: PrefixDep,
    wait: WaitQuery = 0,
) -> Response:
    """Report where a job stands; with ``wait`` as soon as it has ended."""
    return await view_of(id, request, views, long_poll, prefix=prefix, wait=wait)


async def view_of(
    id: str, request: Request, views: JobViews, long_poll: LongPoll, *, prefix: str, wait: float
) -> Response:
    """A job as it is on record, after a wait for its end; nothing if the client has that."""
    if wait:
        await long_poll.wait_for_end(id, at_most_s=wait)
    view = await in_thread(Threads.LOOKS, views.get, id, prefix=prefix)
    headers = {"ETag": f'"{view.digest}"', "Cache-Control": "no-cache"}
    if not view.is_final:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if has_copy(request, view.digest):
        return Response(status_code=304, headers=headers)
    return Response(view.body, media_type="application/json", headers=headers)


@router.get(
    "/jobs/{id}/events",
    dependencies=[READS],
    response_model=JobEventPage,
    response_description="A page with `Accept: application/json`, else a stream.",
    responses={
        200: {"content": {"text/event-stream": {"itemSchema": EVENT_SCHEMA}}},
        **problems(
            errors.JobNotFound,
            errors.NotAcceptable,
            errors.ValidationFailed,
            errors.RateLimited,
            errors.RedisUnavailable,
        ),
    },
)
async def job_events(
    id: JobId,
    request: Request,
    store: StoreDep,
    settings: SettingsDep,
    stopping: StoppingDep,
    room: WaitingRoomDep,
    after: Annotated[str, Query(pattern=EVENT_ID, description="Id of an event.")] = "0",
    limit: Annotated[int, Query(ge=1, le=500, description="Of a page.")] = 100,
    last_event_id: Annotated[str | None, Header(pattern=LAST_EVENT_ID)] = None,
) -> Response:
    """Tell a job's history from behind an event on, and follow it to the end."""
    is_page = wants_page(request.headers.get("accept") or STREAM)
    await in_thread(Threads.LOOKS, store.status_of, id)
    after = last_event_id or after
    if is_page:
        page = await in_thread(Threads.LOOKS, read_page, store, id, after=after, limit=limit)
        return Response(page.model_dump_json(), media_type="application/json")
    client = client_of(request)
    if not room.has_place(client):
        raise errors.RateLimited(
            f"{room.places} streams and long polls of this client are open; no more are allowed"
        )
    pace = Pace(settings.poll_interval_s, settings.keep_alive_s, stopping)
    stream = follow(store, id, after=after, pace=pace, place=room.place(client))
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventSourceResponse(stream, headers=headers)


@router.post(
    "/jobs/{id}/cancel",
    dependencies=[CANCELS],
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
    dependencies=[CANCELS],
    status_code=204,
    responses=problems(
        errors.JobNotFound,
        errors.JobNotFinished,
        errors.ValidationFailed,
        errors.StorageUnavailable,
        errors.RedisUnavailable,
    ),
)
def delete_job(id: JobId, store: StoreDep, artifacts: ArtifactsDep) -> None:
    """Forget a job that has ended; results that are pinned or shared stay."""
    if store.status_of(id).is_final:
        KeptRecords(artifacts.notes).forget(id)  # first: or it might come back
    try:
        store.delete(id)
    except JobOpen as error:
        raise errors.JobNotFinished(f"{error}; cancel it first") from error
