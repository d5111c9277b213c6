"""Trained adapters: upload, list, look at, fetch, delete; truncate, audit and convert."""

import re
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Request, Response
from starlette.responses import StreamingResponse

from fimlora_contract.adapters import (
    ADAPTER_ID,
    Adapter,
    AdapterPage,
    Audit,
    AuditRequest,
    Conversion,
    ConversionRequest,
    Truncation,
    TruncationRequest,
)
from fimlora_contract.artifacts import Artifact
from fimlora_jobs.data_folder import DataFolder, registered_names
from fimlora_jobs.results.store import BINARY, MEDIA_TYPES
from fimlora_jobs.store import JobStore
from fimlora_service import errors
from fimlora_service.adapters.keeping import (
    delete_kept,
    find_kept,
    keep_upload,
    list_kept,
    receive,
    workshop,
)
from fimlora_service.adapters.openapi_examples import (
    AUDIT_EXAMPLES,
    CONVERSION_EXAMPLES,
    TRUNCATION_EXAMPLES,
)
from fimlora_service.datasets.owners import RoomDep
from fimlora_service.http.dependencies import (
    DataFolderDep,
    PrefixDep,
    SettingsDep,
    StoreDep,
    part,
    problems,
    require_json,
)
from fimlora_service.http.headers import has_copy, media_type_of
from fimlora_service.http.space import NeedsSpace
from fimlora_service.http.threads import read_in_threads, reads_files
from fimlora_service.http.turns import Turns
from fimlora_service.keys.access import Whose, only_own_jobs, shown_to
from fimlora_service.keys.principal import CANCELS, EVERYBODY, READS, SUBMITS, PrincipalDep
from fimlora_service.keys.routes import ScopedRoute
from fimlora_service.resolve.trained_adapters import find_adapter
from fimlora_service.results.reading import plan_of

MEDIA_TYPE = "application/x-tar"
AdapterTurnsDep = Annotated[Turns, part("adapter_turns")]
AdapterId = Annotated[
    str,
    Path(max_length=96, description="Id of an adapter, or name of a registered one."),
]
BODY = {
    "required": True,
    "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
}
COMPUTED = problems(
    errors.MalformedRequest,
    errors.AdapterNotFound,
    errors.AdapterInvalid,
    errors.BudgetInfeasible,
    errors.PayloadTooLarge,
    errors.UnsupportedMediaType,
    errors.ValidationFailed,
    errors.StorageUnavailable,
    errors.DiskFull,
    errors.QuotaExceeded,
)
router = APIRouter(tags=["adapters"], route_class=ScopedRoute)


@router.post(
    "/adapters",
    dependencies=[SUBMITS, NeedsSpace],
    status_code=201,
    response_description="The adapter is kept under the digest of its two files.",
    responses={
        200: {"model": Adapter, "description": "The same adapter is kept already."},
        **problems(
            errors.ModelNotAllowed,
            errors.PayloadTooLarge,
            errors.UnsupportedMediaType,
            errors.AdapterInvalid,
            errors.ValidationFailed,
            errors.StorageUnavailable,
            errors.DiskFull,
            errors.QuotaExceeded,
        ),
    },
    openapi_extra={"requestBody": BODY},
)
async def upload_adapter(
    request: Request,
    data_folder: DataFolderDep,
    room: RoomDep,
    settings: SettingsDep,
    turns: AdapterTurnsDep,
    prefix: PrefixDep,
    response: Response,
) -> Adapter:
    """Upload a trained adapter: its two files in an uncompressed tar archive."""
    media_type_of(request, allowed=[MEDIA_TYPE])
    with workshop(data_folder) as work:
        archive = work / "adapter.tar"
        await receive(request.stream(), archive)
        keeping = partial(keep_upload, archive, work, room=room, allowed=settings.allowed)
        adapter, is_new = await turns.run(keeping)
    response.headers["Location"] = f"{prefix}/adapters/{adapter.id}"
    if not is_new:
        response.status_code = 200
    return linked(adapter, prefix)


@router.get("/adapters", dependencies=[READS], responses=problems(errors.ValidationFailed))
@reads_files
def list_adapters(data_folder: DataFolderDep, prefix: PrefixDep, whose: Whose) -> AdapterPage:
    """List adapters: uploaded, made of others, and registered."""
    kept = [linked(adapter, prefix) for adapter in list_kept(data_folder.uploads, whose=whose)]
    local = [look_at(name, data_folder) for name in registered_names(data_folder.adapters)]
    return AdapterPage(data=[*kept, *local])


@router.get(
    "/adapters/{id}",
    dependencies=[READS],
    responses=problems(errors.AdapterNotFound, errors.ValidationFailed),
)
@reads_files
def retrieve_adapter(
    id: AdapterId, data_folder: DataFolderDep, principal: PrincipalDep, prefix: PrefixDep
) -> Adapter:
    """Describe one adapter."""
    if find_adapter(id, data_folder, principal=principal).is_kept:
        return linked(find_kept(id, uploads=data_folder.uploads, principal=principal), prefix)
    return look_at(id, data_folder)


@router.get(
    "/adapters/{id}/files/{name}",
    dependencies=[READS],
    response_class=Response,
    response_description="The file; its ETag is its digest.",
    responses={
        200: {"content": {kind: {} for kind in sorted({BINARY, *MEDIA_TYPES.values()})}},
        304: {"description": "The client's copy is the same."},
        **problems(errors.AdapterNotFound, errors.ArtifactNotFound, errors.ValidationFailed),
    },
)
@reads_files
def retrieve_adapter_file(
    id: AdapterId,
    name: str,
    request: Request,
    data_folder: DataFolderDep,
    principal: PrincipalDep,
) -> Response:
    """Deliver one file of an adapter that is kept here."""
    if not re.fullmatch(ADAPTER_ID, id):
        raise errors.AdapterNotFound(
            f"no adapter {id!r} is kept here; files of registered adapters are the operator's"
        )
    artifact = file_of(find_kept(id, uploads=data_folder.uploads, principal=principal), name)
    headers = {
        "ETag": f'"{artifact.digest}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "Accept-Ranges": "none",
    }
    if has_copy(request, artifact.digest):
        return Response(status_code=304, headers=headers)
    try:
        file = (data_folder.uploads / id / artifact.name).open("rb")
    except FileNotFoundError:
        raise errors.AdapterNotFound(f"no adapter {id!r}") from None
    headers |= {
        "Content-Length": str(artifact.size),
        "Content-Disposition": f'attachment; filename="{artifact.name}"',
    }
    return StreamingResponse(
        read_in_threads(file), media_type=artifact.media_type, headers=headers
    )


@router.delete(
    "/adapters/{id}",
    dependencies=[CANCELS],
    status_code=204,
    responses=problems(
        errors.AdapterNotFound,
        errors.AdapterInUse,
        errors.ValidationFailed,
        errors.RedisUnavailable,
    ),
)
def delete_adapter(
    id: AdapterId, data_folder: DataFolderDep, store: StoreDep, principal: PrincipalDep
) -> None:
    """Delete an adapter that no open job needs; what was made of it stays."""
    if not re.fullmatch(ADAPTER_ID, id):
        raise errors.AdapterNotFound(
            f"no adapter {id!r} is kept here; registered adapters are the operator's"
        )
    with only_own_jobs(principal, store):
        delete_kept(
            id,
            data_folder=data_folder,
            principal=principal,
            find_users=lambda: jobs_on(id, store),
        )


@router.post(
    "/adapters/{id}/truncate",
    response_model=Truncation,
    dependencies=[SUBMITS, Depends(require_json)],
    responses=COMPUTED,
)
async def truncate_adapter(
    id: AdapterId,
    body: Annotated[TruncationRequest, Body(openapi_examples=TRUNCATION_EXAMPLES)],
    data_folder: DataFolderDep,
    principal: PrincipalDep,
    room: RoomDep,
    settings: SettingsDep,
    turns: AdapterTurnsDep,
    prefix: PrefixDep,
) -> Any:
    """Cut an adapter to a budget by one threshold over all singular values (PARA)."""
    from fimlora_service.adapters.working import truncate

    found = find_adapter(id, data_folder, principal=principal)
    step = partial(
        truncate,
        body,
        found,
        data_folder,
        max_bytes=settings.max_upload_bytes,
        room=room,
    )
    made = await turns.run(step)
    return made.model_copy(update={"adapter": linked(made.adapter, prefix)})


@router.post(
    "/adapters/{id}/audit",
    response_model=Audit,
    dependencies=[READS, Depends(require_json)],
    responses=COMPUTED
    | problems(
        errors.JobNotFound,
        errors.NoPattern,
        errors.ResultExpired,
        errors.JobNotFinished,
        errors.JobFailed,
        errors.JobCanceled,
        errors.AdapterNotFound,
        errors.RedisUnavailable,
    ),
)
async def audit_adapter(
    id: AdapterId,
    body: Annotated[AuditRequest, Body(openapi_examples=AUDIT_EXAMPLES)],
    data_folder: DataFolderDep,
    principal: PrincipalDep,
    store: StoreDep,
    turns: AdapterTurnsDep,
) -> Any:
    """Tell what an adapter uses of its ranks, and where it is not as a job planned."""
    from fimlora_service.adapters.working import audit

    found = find_adapter(id, data_folder, principal=principal)

    def step() -> Audit:
        plan = (
            body.job_id and plan_of(shown_to(principal, body.job_id, store).to_job()).rank_map
        )
        return audit(found, job_id=body.job_id, rank_map=plan or None)

    return await turns.run(step)


@router.post(
    "/adapters/{id}/convert",
    response_model=Conversion,
    dependencies=[SUBMITS, Depends(require_json)],
    responses=COMPUTED,
)
async def convert_adapter(
    id: AdapterId,
    body: Annotated[ConversionRequest, Body(openapi_examples=CONVERSION_EXAMPLES)],
    data_folder: DataFolderDep,
    principal: PrincipalDep,
    room: RoomDep,
    settings: SettingsDep,
    turns: AdapterTurnsDep,
    prefix: PrefixDep,
) -> Any:
    """Write an adapter in another layout, with the same function."""
    from fimlora_service.adapters.working import convert

    found = find_adapter(id, data_folder, principal=principal)
    step = partial(
        convert,
        body,
        found,
        data_folder,
        max_bytes=settings.max_upload_bytes,
        room=room,
    )
    made = await turns.run(step)
    return made.model_copy(update={"adapter": linked(made.adapter, prefix)})


def look_at(name: str, data_folder: DataFolder) -> Adapter:
    """What a registered folder holds, read from its config and the head of its file."""
    from fimlora_service.adapters.keeping import describe
    from fimlora_service.resolve.adapter_reading import read_head

    try:
        found = find_adapter(name, data_folder, principal=EVERYBODY)
        return describe(name, read_head(found.folder), source="local")
    except errors.ServiceError as error:
        return Adapter(id=name, source="local", size=0, usable=False, problem=str(error))


def linked(adapter: Adapter, prefix: str) -> Adapter:
    """The adapter with addresses of its files."""
    at = f"{prefix}/adapters/{adapter.id}/files"
    files = [f.model_copy(update={"href": f"{at}/{f.name}"}) for f in adapter.files]
    return adapter.model_copy(update={"files": files})


def file_of(adapter: Adapter, name: str) -> Artifact:
    """A file by name; only what is listed is ever looked for.

    Raises:
        ArtifactNotFound: There is no such file.
    """
    listed = {file.name: file for file in adapter.files}
    if name not in listed:
        raise errors.ArtifactNotFound(f"no file of that name; there are {sorted(listed)}")
    return listed[name]


def jobs_on(id: str, store: JobStore) -> list[str]:
    """Ids of the open jobs that measure at an adapter."""
    return [
        job_id
        for job_id, request in store.open_requests()
        if (request.get("calibration") or {}).get("adapter") == id
    ]
