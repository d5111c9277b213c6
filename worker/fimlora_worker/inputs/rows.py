"""Rows of the dataset that a job was accepted with, wherever they lie."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fimlora_contract.references import (
    DatasetReference,
    HubDataset,
    InlineDataset,
    LocalDataset,
)
from fimlora_jobs.datasets.folders import FolderDigests, FolderError, dataset_files
from fimlora_jobs.datasets.rows import RowError
from fimlora_jobs.datasets.table import Rows, arrow_rows, inline_rows, rows_of_files
from fimlora_worker.errors import DatasetEmpty, DatasetSchema, DatasetUnreachable
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
        return _from_hub(reference, str(resolved["revision"]), settings)
    return rows_of_files(_find_files(reference, resolved, settings, digests), alive=alive)


def _find_files(
    reference: Any, resolved: dict[str, Any], settings: Settings, digests: FolderDigests
) -> list[Path]:
    is_local = isinstance(reference, LocalDataset)
    path = (
        settings.datasets_dir / reference.name
        if is_local
        else settings.uploads_dir / reference.id
    )
    name = reference.name if is_local else reference.id
    if not path.exists():
        raise DatasetUnreachable(f"dataset {name!r} is not there any more")
    try:
        files = dataset_files(path)
    except FolderError as error:
        raise DatasetUnreachable(str(error)) from error
    if is_local and digests.of_files(files) != resolved.get("digest"):
        raise DatasetUnreachable(
            f"dataset {name!r} has changed since the job was accepted; submit it again"
        )
    return list(files.values())


def _from_hub(reference: HubDataset, commit: str, settings: Settings) -> Rows:
    """Load a split through `datasets`, at the commit the job was accepted with.

    Raises:
        DatasetUnreachable: The repository, commit, configuration or split is not there.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from datasets.utils.logging import disable_progress_bar

    if Path(reference.id).exists():  # `datasets` would open a local folder of that name
        raise DatasetUnreachable(f"a local folder hides the dataset {reference.id!r}")
    disable_progress_bar()
    try:
        loaded = load_dataset(
            reference.id,
            reference.config,
            split=reference.split,
            revision=commit,
            cache_dir=str(settings.hub_dir / "datasets"),
        )
    except (DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        raise DatasetUnreachable(f"dataset {reference.id!r}: {error}") from error
    declared = {name: _declared_classes(loaded, name) for name in loaded.column_names}
    return arrow_rows(
        loaded.data.table, classes={name: names for name, names in declared.items() if names}
    )


def _declared_classes(dataset: Any, name: str) -> tuple[str, ...]:
    return tuple(getattr(dataset.features.get(name), "names", None) or ())
