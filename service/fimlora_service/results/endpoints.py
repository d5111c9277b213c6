"""GET /jobs/{id}/artifacts/{name}: the files of a result, immutable under their digest."""

from collections.abc import Iterator
from typing import BinaryIO

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from fimlora_contract.artifacts import Artifact
from fimlora_contract.digests import CHUNK
from fimlora_contract.jobs import CalibrationResult
from fimlora_jobs.results.store import BINARY, MEDIA_TYPES, STATISTICS
from fimlora_service import errors
from fimlora_service.http.dependencies import ArtifactsDep, JobId, StoreDep, problems
from fimlora_service.http.headers import matches
from fimlora_service.http.strict_queries import StrictQueryRoute
from fimlora_service.jobs.endpoints import result_of

NAMES = frozenset({
    "adapter_config.json",
    "adapter_model.safetensors",
    "rank_map.json",
    "rank_map.svg",
    STATISTICS,
})  # fmt: skip
router = APIRouter(tags=["jobs"], route_class=StrictQueryRoute)


@router.get(
    "/jobs/{id}/artifacts/{name}",
    response_class=Response,
    response_description="The file; its ETag is its digest.",
    responses={
        200: {"content": {kind: {} for kind in sorted({BINARY, *MEDIA_TYPES.values()})}},
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
def retrieve_artifact(
    id: JobId, name: str, request: Request, store: StoreDep, artifacts: ArtifactsDep
) -> Response:
    """Deliver one file of a result."""
    result = result_of(store.get(id).to_job())
    artifact = find_artifact(result, name)
    headers = {
        "ETag": f'"{artifact.digest}"',
        "Cache-Control": "public, max-age=31536000, immutable",
        # A digest speaks for the whole file only, so the file is always sent whole.
        "Accept-Ranges": "none",
    }
    if matches(request.headers.get("if-none-match", ""), artifact.digest):
        return Response(status_code=304, headers=headers)
    file = artifacts.open(result.digest, name)
    headers |= {
        "Content-Length": str(artifact.size),
        "Content-Disposition": f'attachment; filename="{name}"',
    }
    return StreamingResponse(pieces(file), media_type=artifact.media_type, headers=headers)


def find_artifact(result: CalibrationResult, name: str) -> Artifact:
    """An artefact by name; only a name of the closed set is ever looked for."""
    listed = {a.name: a for a in result.artifacts if a.name in NAMES}
    if name not in listed:
        raise errors.ArtifactNotFound(f"no artefact of that name; there are {sorted(listed)}")
    return listed[name]


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """A file piece by piece, closed at the end or when nobody reads on."""
    with file:
        while piece := file.read(CHUNK):
            yield piece
