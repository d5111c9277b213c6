"""Datasets: upload, list, look at, and delete."""

import re
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from fimlora_contract.datasets import Dataset, DatasetPage
from fimlora_contract.references import UPLOAD_ID
from fimlora_jobs.allow_lists import DATASET_ROLES
from fimlora_jobs.store import JobStore
from fimlora_service import errors
from fimlora_service.datasets.local import list_local_datasets
from fimlora_service.datasets.owners import RoomDep
from fimlora_service.datasets.uploads import (
    MEDIA_TYPES,
    Format,
    delete_upload,
    find_upload,
    list_uploads,
    receive_upload,
)
from fimlora_service.http.dependencies import (
    DataFolderDep,
    PrefixDep,
    SettingsDep,
    StoreDep,
    part,
    problems,
)
from fimlora_service.http.headers import media_type_of
from fimlora_service.http.space import NeedsSpace
from fimlora_service.http.threads import reads_files
from fimlora_service.http.turns import Turns
from fimlora_service.keys.access import Whose, only_own_jobs
from fimlora_service.keys.principal import CANCELS, READS, SUBMITS, PrincipalDep
from fimlora_service.keys.routes import ScopedRoute

router = APIRouter(tags=["datasets"], route_class=ScopedRoute)
UploadTurnsDep = Annotated[Turns, part("upload_turns")]
DatasetId = Annotated[
    str,
    Path(max_length=96, description="Id of an upload, or name of a registered dataset."),
]
BODY = {
    "required": True,
    "content": {
        name: {"schema": {"type": "string", "format": "binary"}} for name in MEDIA_TYPES
    },
}


@router.post(
    "/datasets",
    dependencies=[SUBMITS, NeedsSpace],
    status_code=201,
    response_description="The dataset is kept under the digest of its bytes.",
    responses={
        200: {"model": Dataset, "description": "The same bytes were uploaded before."},
        **problems(
            errors.SourceNotAllowed,
            errors.PayloadTooLarge,
            errors.UnsupportedMediaType,
            errors.DatasetSchema,
            errors.DatasetEmpty,
            errors.ValidationFailed,
            errors.StorageUnavailable,
            errors.DiskFull,
            errors.QuotaExceeded,
        ),
    },
    openapi_extra={"requestBody": BODY},
)
async def upload_dataset(
    request: Request,
    data_folder: DataFolderDep,
    room: RoomDep,
    settings: SettingsDep,
    turns: UploadTurnsDep,
    prefix: PrefixDep,
    response: Response,
) -> Dataset:
    """Upload rows, as JSONL, CSV or Parquet, to calibrate on."""
    settings.allowed.check_dataset({"source": "upload"})
    format_ = format_of(request)
    dataset, is_new = await receive_upload(
        request.stream(), format=format_, data_folder=data_folder, room=room, turns=turns
    )
    response.headers["Location"] = f"{prefix}/datasets/{dataset.id}"
    if not is_new:
        response.status_code = 200
    return dataset


def format_of(request: Request) -> Format:
    """The format that the content type names."""
    return MEDIA_TYPES[media_type_of(request, allowed=sorted(MEDIA_TYPES))]


@router.get("/datasets", dependencies=[READS], responses=problems(errors.ValidationFailed))
@reads_files
def list_datasets(data_folder: DataFolderDep, whose: Whose) -> DatasetPage:
    """List uploaded and registered datasets."""
    local = list_local_datasets(data_folder.datasets)
    return DatasetPage(data=[*list_uploads(data_folder.uploads, whose=whose), *local])


@router.get(
    "/datasets/{id}",
    dependencies=[READS],
    responses=problems(errors.DatasetNotFound, errors.ValidationFailed),
)
@reads_files
def retrieve_dataset(
    id: DatasetId, data_folder: DataFolderDep, principal: PrincipalDep
) -> Dataset:
    """Describe one uploaded or registered dataset."""
    if re.fullmatch(UPLOAD_ID, id):
        return find_upload(id, uploads=data_folder.uploads, principal=principal)
    for dataset in list_local_datasets(data_folder.datasets):
        if dataset.id == id:
            return dataset
    raise errors.DatasetNotFound(f"no dataset {id!r}")


@router.delete(
    "/datasets/{id}",
    dependencies=[CANCELS],
    status_code=204,
    responses=problems(
        errors.DatasetNotFound,
        errors.DatasetInUse,
        errors.ValidationFailed,
        errors.RedisUnavailable,
    ),
)
def delete_dataset(
    id: DatasetId, data_folder: DataFolderDep, store: StoreDep, principal: PrincipalDep
) -> None:
    """Delete an upload that no open job needs; results that were made from it stay."""
    if not re.fullmatch(UPLOAD_ID, id):
        raise errors.DatasetNotFound(
            f"no uploaded dataset {id!r}; only uploads can be deleted, registered datasets are "
            "the operator's"
        )
    with only_own_jobs(principal, store):
        delete_upload(
            id,
            data_folder=data_folder,
            principal=principal,
            find_users=lambda: jobs_on(id, store),
        )


def jobs_on(id: str, store: JobStore) -> list[str]:
    """Ids of the open jobs that read an upload, to measure it or to test on it."""
    return [
        job_id
        for job_id, request in store.open_requests()
        for role in DATASET_ROLES
        for dataset in [request.get(role) or {}]
        if (dataset.get("source"), dataset.get("id")) == ("upload", id)
    ]
