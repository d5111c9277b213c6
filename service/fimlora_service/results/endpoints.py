"""GET /jobs/{id}/result and /jobs/{id}/artifacts: what a job found, and its files.

A result never changes, and neither does a file under its digest.
"""

from io import BytesIO
from typing import Any, BinaryIO

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from fimlora_contract.artifacts import Artifact, ArtifactPage
from fimlora_contract.base import AnswerModel
from fimlora_contract.jobs import AnyResult
from fimlora_contract.signatures import NAME as SIGNATURE
from fimlora_jobs.results.store import BINARY, MEDIA_TYPES
from fimlora_service import errors
from fimlora_service.http.dependencies import (
    ArtifactsDep,
    PrefixDep,
    StoreDep,
    problems,
)
from fimlora_service.http.headers import has_copy
from fimlora_service.http.threads import read_in_threads, reads_files
from fimlora_service.keys.access import JobId
from fimlora_service.keys.principal import READS
from fimlora_service.keys.routes import ScopedRoute
from fimlora_service.results.reading import find_artifact, result_of

# What a file's name tells: adapter_config.json, rank_map.json and the like are objects.
FILE_SCHEMAS = {
    kind: {"schema": {"type": "object"} if kind == "application/json" else {"type": "string"}}
    for kind in sorted(MEDIA_TYPES.values())
} | {BINARY: {"schema": {"type": "string", "format": "binary"}}}
SHOWN = frozenset({"image/svg+xml", "text/html"})  # under a policy that runs no script
router = APIRouter(tags=["jobs"], route_class=ScopedRoute)
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


@router.get(
    "/jobs/{id}/result",
    dependencies=[READS],
    response_model=AnyResult,
    responses=RESULT_RESPONSES,
)
@reads_files
def retrieve_result(
    id: JobId, request: Request, store: StoreDep, artifacts: ArtifactsDep, prefix: PrefixDep
) -> Response:
    """Deliver what a succeeded job found."""
    result = result_of(store.shown(id).to_job(prefix=prefix))
    artifacts.use(result.digest)
    return tagged(request, result, digest=result.digest)


@router.get(
    "/jobs/{id}/artifacts",
    dependencies=[READS],
    response_model=ArtifactPage,
    responses=RESULT_RESPONSES,
)
@reads_files
def list_artifacts(
    id: JobId, request: Request, store: StoreDep, artifacts: ArtifactsDep, prefix: PrefixDep
) -> Response:
    """List the files of a result with their digests and links."""
    result = result_of(store.shown(id).to_job(prefix=prefix))
    artifacts.use(result.digest)
    return tagged(request, ArtifactPage(data=result.artifacts), digest=result.digest)


@router.get(
    "/jobs/{id}/artifacts/{name}",
    dependencies=[READS],
    response_class=Response,
    response_description="The file; its ETag is its digest.",
    responses={
        200: {"content": FILE_SCHEMAS},
        304: {"description": "The client's copy is the same."},
        **problems(
            errors.JobNotFound,
            errors.ArtifactNotFound,
            errors.ResultExpired,
            errors.StorageUnavailable,
            errors.JobNotFinished,
            errors.JobFailed,
            errors.JobCanceled,
            errors.ValidationFailed,
            errors.RedisUnavailable,
        ),
    },
)
@reads_files
def retrieve_artifact(
    id: JobId, name: str, request: Request, store: StoreDep, artifacts: ArtifactsDep
) -> Response:
    """Deliver one file of a result."""
    record = store.get(id)
    result = result_of(record.to_job())
    artifact = find_artifact(result, name)
    headers = {
        "ETag": f'"{artifact.digest}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        # A digest speaks for the whole file only, so the file is always sent whole.
        "Accept-Ranges": "none",
    }
    if has_copy(request, artifact.digest):
        return Response(status_code=304, headers=headers)
    if name == SIGNATURE:  # it lies beside the files, not among them
        file: BinaryIO = BytesIO(record.json_field("result")["signature"].encode())
    else:
        file = artifacts.open(result.digest, name)
    headers |= {
        "Content-Length": str(artifact.size),
        "Content-Disposition": f'{disposition_of(artifact)}; filename="{name}"',
    }
    return StreamingResponse(
        read_in_threads(file), media_type=artifact.media_type, headers=headers
    )


def disposition_of(artifact: Artifact) -> str:
    """Whether a file is to be looked at, as pictures and pages are, or to be kept."""
    return "inline" if artifact.media_type in SHOWN else "attachment"


def tagged(request: Request, body: AnswerModel, *, digest: str) -> Response:
    """An answer whose tag is the content address of the result it tells of."""
    headers = {"ETag": f'"{digest}"', "Cache-Control": "no-cache"}
    if has_copy(request, digest):
        return Response(status_code=304, headers=headers)
    return Response(body.model_dump_json(), media_type="application/json", headers=headers)
