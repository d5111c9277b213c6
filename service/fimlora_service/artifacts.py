"""GET /jobs/{id}/artifacts/{name}: the files of a result, immutable under their digest."""

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from fimlora_contract.jobs import CalibrationResult
from fimlora_service import errors
from fimlora_service.dependencies import DataFolderDep, JobId, StoreDep, problems
from fimlora_service.etags import matches
from fimlora_service.jobs import result_of

NAMES = frozenset({
    "adapter_config.json",
    "adapter_model.safetensors",
    "rank_map.json",
    "rank_map.svg",
    "statistics.safetensors",
})  # fmt: skip
router = APIRouter(tags=["jobs"])


class WholeFile(FileResponse):
    """A file that is always sent whole: a digest speaks for the whole file only."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


@router.get(
    "/jobs/{id}/artifacts/{name}",
    response_class=Response,
    response_description="The file; its ETag is its digest.",
    responses={
        200: {"content": {"application/octet-stream": {}}},
        304: {"description": "The client's copy is the same."},
        **problems(
            errors.JobNotFound,
            errors.ArtifactNotFound,
            errors.JobNotFinished,
            errors.JobFailed,
            errors.JobCanceled,
            errors.ValidationFailed,
            errors.RedisUnavailable,
        ),
    },
)
def retrieve_artifact(
    id: JobId, name: str, request: Request, store: StoreDep, data_folder: DataFolderDep
) -> Response:
    """Deliver one file of a result."""
    result = result_of(store.get(id).to_job())
    path, digest, media_type = locate(result, name, data_folder.result(result.digest))
    headers = {
        "ETag": f'"{digest}"',
        "Cache-Control": "public, max-age=31536000, immutable",
        "Accept-Ranges": "none",
    }
    if matches(request.headers.get("if-none-match", ""), digest):
        return Response(status_code=304, headers=headers)
    return WholeFile(path, media_type=media_type, headers=headers, filename=name)


def locate(result: CalibrationResult, name: str, folder: Path) -> tuple[Path, str, str]:
    """Path, digest and media type of an artefact; its name is never made a path unchecked."""
    listed = {a.name: a for a in result.artifacts if a.name in NAMES}
    artifact = listed.get(name)
    if artifact is None:
        raise errors.ArtifactNotFound(f"no artefact of that name; there are {sorted(listed)}")
    path = folder / artifact.name
    if not path.is_file():
        raise errors.ArtifactNotFound(f"artefact {name!r} is no longer stored")
    return path, artifact.digest, artifact.media_type
