"""Rows of a dataset, wherever they lie: inline, in a file, or in a hub repository."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fimlora_contract.references import (
    DatasetReference,
    HubDataset,
    InlineDataset,
    LocalDataset,
)
from fimlora_jobs.datasets.folders import FolderDigests, FolderError, dataset_files
from fimlora_jobs.datasets.jsonl import skip_byte_order_mark
from fimlora_worker.errors import DatasetEmpty, DatasetSchema, DatasetUnreachable
from fimlora_worker.settings import Settings

Row = dict[str, Any]


def _declares_none(_column: str) -> None:
    return None


@dataclass(frozen=True)
class Rows:
    """A dataset as numbered rows with named columns.

    Attributes:
        names: Columns, in order.
        n_rows: How many rows there are.
        row: Reads one row.
        column: Reads one column of all rows.
        where: What to call a row in an error, such as ``line 3``.
        classes: Names of the classes if the label column declares them.
    """

    names: tuple[str, ...]
    n_rows: int
    row: Callable[[int], Row]
    column: Callable[[str], Sequence[Any]]
    where: Callable[[int], str]
    classes: Callable[[str], tuple[str, ...] | None] = _declares_none


def open_rows(
    reference: DatasetReference,
    resolved: dict[str, Any],
    settings: Settings,
    digests: FolderDigests,
) -> Rows:
    """Open the dataset that a job was accepted with.

    Raises:
        DatasetUnreachable: It is not there any more, or has changed.
        DatasetSchema: A row does not parse; the message names it.
        DatasetEmpty: It has no rows.
    """
    if isinstance(reference, InlineDataset):
        rows = _from_list(list(reference.rows), where=lambda i: f"row {i + 1}")
    elif isinstance(reference, HubDataset):
        rows = _from_hub(reference, str(resolved["revision"]), settings)
    else:
        rows = _from_files(_find_files(reference, resolved, settings, digests))
    if not rows.n_rows:
        raise DatasetEmpty("the dataset has no rows")
    return rows


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


def _from_files(files: Sequence[Path]) -> Rows:
    if files[0].suffix == ".parquet":
        return _from_parquet(files)
    return _from_jsonl(files)


def _from_jsonl(files: Sequence[Path]) -> Rows:
    rows: list[Row] = []
    places: list[tuple[str, int]] = []
    for file in files:
        with file.open("rb") as lines:
            skip_byte_order_mark(lines)
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append(_parse(line, f"{file.name} line {number}"))
                    places.append((file.name, number))
    return _from_list(rows, where=lambda i: "{} line {}".format(*places[i]))


def _parse(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DatasetSchema(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DatasetSchema(f"{where} must be a JSON object, it is a {type(row).__name__}")
    return row


def _from_list(rows: list[Row], *, where: Callable[[int], str]) -> Rows:
    return Rows(
        names=tuple(_names(rows)),
        n_rows=len(rows),
        row=rows.__getitem__,
        column=lambda name: [row.get(name) for row in rows],
        where=where,
    )


def _names(rows: Iterable[Row]) -> dict[str, None]:
    return {name: None for row in rows for name in row}


def _from_parquet(files: Sequence[Path]) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pa.concat_tables([pq.read_table(file) for file in files])
    except pa.ArrowInvalid as error:
        raise DatasetSchema(f"cannot read {[file.name for file in files]}: {error}") from error
    return Rows(
        names=tuple(table.column_names),
        n_rows=table.num_rows,
        row=lambda i: dict(table.slice(i, 1).to_pylist()[0]),
        column=lambda name: list(table.column(name).to_pylist()),
        where=lambda i: f"row {i + 1}",
    )


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
    return Rows(
        names=tuple(loaded.column_names),
        n_rows=loaded.num_rows,
        row=lambda i: dict(loaded[i]),
        column=lambda name: list(loaded[name]),
        where=lambda i: f"row {i + 1}",
        classes=lambda name: _declared_classes(loaded, name),
    )


def _declared_classes(dataset: Any, name: str) -> tuple[str, ...] | None:
    names = getattr(dataset.features.get(name), "names", None)
    return tuple(names) if names else None
