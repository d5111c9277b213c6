"""Registered local datasets: a JSONL, CSV or Parquet file, or a folder of such files."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from fimlora_contract.datasets import Dataset
from fimlora_contract.near_names import did_you_mean
from fimlora_jobs.data_folder import registered_names
from fimlora_jobs.datasets.folders import FolderError, content_files, dataset_files
from fimlora_service.errors import (
    DatasetNotFound,
    DatasetSchema,
    DatasetUnreachable,
    ServiceError,
)

FORMATS: dict[str, Literal["csv", "jsonl", "parquet"]] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".parquet": "parquet",
}


def data_files(name: str, *, datasets: Path) -> dict[str, Path]:
    """The files of a registered dataset by name, in the order of reading.

    Raises:
        DatasetNotFound: Nothing is registered under that name.
        DatasetSchema: What is registered holds no data, or mixes formats.
        DatasetUnreachable: The service's user may not read it.
    """
    if not (datasets / name).exists():
        known = registered_names(datasets)
        raise DatasetNotFound(
            f"no local dataset {name!r}; registered datasets: {known}{did_you_mean(name, known)}"
        )
    return _found(dataset_files, name, datasets)


def content_of(name: str, *, datasets: Path) -> dict[str, Path]:
    """All files that the rows of a registered dataset may be made of; errors as `data_files` has.

    Raises:
        DatasetSchema: There are too many.
        DatasetUnreachable: The service's user may not read it.
    """
    return _found(content_files, name, datasets)


def _found(
    find: Callable[[Path], dict[str, Path]], name: str, datasets: Path
) -> dict[str, Path]:
    try:
        return find(datasets / name)
    except FolderError as error:
        raise DatasetSchema(str(error)) from error
    except PermissionError as error:
        raise DatasetUnreachable(
            f"local dataset {name!r} may not be read by the service's user"
        ) from error


def list_local_datasets(datasets: Path) -> list[Dataset]:
    """All registered datasets that hold data; none is read for being listed."""
    listed = []
    for name in registered_names(datasets):
        try:
            files = list(data_files(name, datasets=datasets).values())
        except ServiceError:
            continue  # nothing that could be calibrated on
        listed.append(
            Dataset(
                id=name,
                source="local",
                rows=None,
                digest=None,
                format=FORMATS[files[0].suffix] if len(files) == 1 else "folder",
                size=sum(file.stat().st_size for file in files),
            )
        )
    return listed
