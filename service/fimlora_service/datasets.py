"""POST and GET /datasets."""

from fastapi import APIRouter, Request, Response

from fimlora_contract.jobs import Dataset, DatasetPage
from fimlora_service import errors
from fimlora_service.dependencies import DataFolderDep, problems
from fimlora_service.local_datasets import list_local_datasets
from fimlora_service.uploads import MEDIA_TYPES, Format, list_uploads, receive_upload

router = APIRouter(tags=["datasets"])
BODY = {
    "required": True,
    "content": {
        name: {"schema": {"type": "string", "format": "binary"}} for name in MEDIA_TYPES
    },
}


@router.post(
    "/datasets",
    status_code=201,
    response_description="The dataset is kept under the digest of its bytes.",
    responses={
        200: {"model": Dataset, "description": "The same bytes were uploaded before."},
        **problems(
            errors.PayloadTooLarge,
            errors.UnsupportedMediaType,
            errors.DatasetSchema,
            errors.DatasetEmpty,
            errors.DiskFull,
        ),
    },
    openapi_extra={"requestBody": BODY},
)
async def upload_dataset(
    request: Request, data_folder: DataFolderDep, response: Response
) -> Dataset:
    """Upload rows, as JSONL or Parquet, to calibrate on."""
    format_ = format_of(request)
    dataset, is_new = await receive_upload(
        request.stream(), format=format_, data_folder=data_folder
    )
    if not is_new:
        response.status_code = 200
    return dataset


def format_of(request: Request) -> Format:
    """The format that the content type names."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in MEDIA_TYPES:
        raise errors.UnsupportedMediaType(
            f"content type {given[:100]!r}; expected one of {sorted(MEDIA_TYPES)}"
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise errors.UnsupportedMediaType(f"content encoding {encoding[:100]!r}; send it plain")
    return MEDIA_TYPES[given]


@router.get("/datasets")
def list_datasets(data_folder: DataFolderDep) -> DatasetPage:
    """List uploaded and registered datasets."""
    local = list_local_datasets(data_folder.datasets)
    return DatasetPage(data=[*list_uploads(data_folder.uploads), *local])
