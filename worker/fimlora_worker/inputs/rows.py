"""Rows of the dataset that a job was accepted with, wherever they lie."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fimlora_contract.references import (
    DatasetReference,
    HubDataset,
    InlineDataset,
    LocalDataset,
)
from fimlora_jobs.datasets.folders import (
    FolderDigests,
    FolderError,
    content_files,
    dataset_files,
    folder_beside,
)
from fimlora_jobs.datasets.rows import PlacedRow, RowError
from fimlora_jobs.datasets.table import Rows, inline_rows, rows_of_files
from fimlora_worker.errors import DatasetEmpty, DatasetSchema, DatasetUnreachable
from fimlora_worker.inputs.hub_rows import open_hub_rows
from fimlora_worker.settings import Settings


def _nothing() -> None:
    pass


def open_rows(
    reference: DatasetReference,
    resolved: dict[str, Any],
    settings: Settings,
    digests: FolderDigests,
    *,
    alive: Callable[[], None] = _nothing,
) -> Rows:
    """Open the dataset that a job was accepted with.

    Args:
        reference: What the job names.
        resolved: What the service made of it.
        settings: Of this worker.
        digests: What is remembered of files.
        alive: Called now and then while many rows are read.

    Raises:
        DatasetUnreachable: It is not there any more, or has changed.
        DatasetSchema: A row does not parse; the message names it.
        DatasetEmpty: It has no rows.
    """
    try:
        rows = _open(reference, resolved, settings, digests, alive)
    except RowError as error:
        raise DatasetSchema(str(error)) from error
    if not rows.n_rows:
        raise DatasetEmpty("the dataset has no rows")
    return rows


def _open(
    reference: DatasetReference,
    resolved: dict[str, Any],
    settings: Settings,
    digests: FolderDigests,
    alive: Callable[[], None],
) -> Rows:
    if isinstance(reference, InlineDataset):
        return inline_rows(reference.rows)
    if isinstance(reference, HubDataset):
        cache = settings.hub_dir / "datasets"
        return open_hub_rows(reference, str(resolved["revision"]), cache=cache, alive=alive)
    if not isinstance(reference, LocalDataset):  # an upload, which never changes
        files = _find_files(settings.uploads_dir / reference.id)
        return rows_of_files([*files.values()], alive=alive)
    folder = settings.datasets_dir / reference.name
    files = _find_files(folder)

    def check() -> None:
        if digests.of_files(_found(content_files, folder)) != resolved.get("digest"):
            raise DatasetUnreachable(
                f"dataset {reference.name!r} has changed since the job was accepted; submit it "
                "again"
            )

    check()
    rows = replace(rows_of_files([*files.values()], alive=alive), beside=folder_beside(folder))
    return _checked_after(rows, check)


def _checked_after(rows: Rows, check: Callable[[], None]) -> Rows:
    """Rows of files that may change, or grow, while they are read: each reading is checked."""

    def read(numbers: Sequence[int], columns: Sequence[str]) -> list[PlacedRow]:
        try:
            return rows.read(numbers, columns)
        finally:  # what cannot be read of them does not matter if they have changed
            check()

    def scan(column: str) -> Iterator[tuple[str, Any]]:
        yield from rows.scan(column)
        check()

    check()
    return replace(rows, read=read, scan=scan)


def _find_files(path: Path) -> dict[str, Path]:
    name = path.name
    if not path.exists():
        raise DatasetUnreachable(f"dataset {name!r} is not there any more")
    return _found(dataset_files, path)


def _found(find: Callable[[Path], dict[str, Path]], path: Path) -> dict[str, Path]:
    try:
        return find(path)
    except FolderError as error:
        raise DatasetUnreachable(str(error)) from error
