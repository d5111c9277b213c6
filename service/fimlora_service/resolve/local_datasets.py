"""Datasets that are here, by their content: uploads, rows in a request, registered files."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from fimlora_contract.digests import digest_of
from fimlora_contract.references import Columns, InlineDataset, LocalDataset, UploadedDataset
from fimlora_jobs.data_folder import DataFolder
from fimlora_jobs.datasets.checks import check_rows
from fimlora_jobs.datasets.columns import (
    TaskName,
    TextFields,
    find_fields,
    has_chat,
    used_columns,
)
from fimlora_jobs.datasets.files import check_kinds, columns_of_rows, read_files, read_header
from fimlora_jobs.datasets.folders import FolderDigests, folder_beside
from fimlora_jobs.datasets.kept_digests import KeptDigests, stamp_of
from fimlora_jobs.datasets.media import Kind
from fimlora_jobs.datasets.rows import PlacedRow, read_inline
from fimlora_service.datasets.local import content_of, data_files
from fimlora_service.datasets.uploads import find_upload
from fimlora_service.errors import DatasetEmpty
from fimlora_service.keys.principal import EVERYBODY, Principal

_State = tuple[Path, int, int, int, int]
# The operator's files may be huge: their first rows tell whether the columns fit.
LOCAL_ROWS_CHECKED = 10_000


class LocalDatasets:
    """The datasets of a data folder, and those that requests bring; safe for several threads.

    Args:
        data_folder: Where uploads and registered datasets lie.
        rows_checked: How many rows of a registered dataset are looked at.
    """

    def __init__(
        self, data_folder: DataFolder, *, rows_checked: int = LOCAL_ROWS_CHECKED
    ) -> None:
        self._data = data_folder
        self._rows_checked = rows_checked
        self._digests = FolderDigests(KeptDigests(data_folder.digests))
        # Uploads never change, so what was checked once need not be read again.
        self._check_upload = lru_cache(maxsize=1024)(_check_file)
        self._check_files = lru_cache(maxsize=256)(_check_files)

    def resolve(
        self,
        dataset: UploadedDataset | InlineDataset | LocalDataset,
        *,
        task: TaskName,
        principal: Principal = EVERYBODY,
    ) -> dict[str, Any]:
        """Check the rows of a dataset and take its digest.

        Args:
            dataset: The dataset.
            task: What it is for.
            principal: Who asks.

        Raises:
            ServiceError: It is not there, or is empty.
            ColumnError: Its columns cannot be used for the task.
            RowError: A row cannot be used.
        """
        match dataset:
            case UploadedDataset():
                return self._resolve_upload(dataset, task, principal)
            case InlineDataset():
                return _resolve_inline(dataset, task)
            case LocalDataset():
                return self._resolve_local(dataset, task)

    def _resolve_upload(
        self, dataset: UploadedDataset, task: TaskName, principal: Principal
    ) -> dict[str, Any]:
        found = find_upload(dataset.id, uploads=self._data.uploads, principal=principal)
        fields = find_fields(found.columns, columns=dataset.columns, task=task)
        file = self._data.uploads / dataset.id / f"data.{found.format}"
        seen = self._check_upload(file, fields, task)
        return {"source": "upload", "id": dataset.id, "digest": found.digest} | seen.on_record()

    def _resolve_local(self, dataset: LocalDataset, task: TaskName) -> dict[str, Any]:
        found = data_files(dataset.name, datasets=self._data.datasets)
        files = list(found.values())
        folder = self._data.datasets / dataset.name
        content = content_of(dataset.name, datasets=self._data.datasets)
        states = tuple(_state(file) for file in files)
        # Rows may name other files, which are looked at with them.
        others = tuple(_state(file) for name, file in content.items() if name not in found)
        seen = self._check_files(
            states, others, dataset.columns, task, self._rows_checked, folder_beside(folder)
        )
        if seen is None:
            raise DatasetEmpty(f"local dataset {dataset.name!r} has no rows")
        return {
            "source": "local",
            "name": dataset.name,
            "digest": self._digests.of_files(content),
        } | seen.on_record()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the first rows of files tell, and how many rows there are if these are all."""

    fields: TextFields
    rows: int | None
    is_chat: bool
    media: tuple[Kind, ...] = ()

    def on_record(self) -> dict[str, Any]:
        """What a job's record says of it."""
        found = {"fields": self.fields.on_record(), "rows": self.rows, "chat": self.is_chat}
        return found | ({"media": list(self.media)} if self.media else {})


def _state(file: Path) -> _State:
    """A file as it is now; a change of it is another state, also where its time was set back."""
    return file, *stamp_of(file.stat())


def _check_files(
    states: tuple[_State, ...],
    _others: tuple[_State, ...],  # what is remembered holds for these alone
    columns: Columns,
    task: TaskName,
    most: int,
    beside: Path | None,
) -> _Seen | None:
    """Check the first rows of a registered dataset; ``None`` if it has none."""
    files = [file for file, *_ in states]
    header = read_header(files)
    if not header.columns:
        return None
    fields = find_fields(header.columns, columns=columns, task=task)
    check_kinds(files, fields)
    used = used_columns(fields)
    checked = check_rows(
        read_files(files, used),
        fields,
        task=task,
        classes=header.classes.get(fields.label or ""),
        most=most,
        beside=beside,
    )
    is_chat = _starts_with_chat(read_files(files, used), fields)
    return None if checked.rows == 0 else _Seen(fields, checked.rows, is_chat, checked.media)


def _starts_with_chat(rows: Iterable[PlacedRow], fields: TextFields) -> bool:
    """Whether the first row is a conversation; the others are of one kind with it."""
    return any(has_chat(row, fields) for _, row in islice(rows, 1))


def _resolve_inline(dataset: InlineDataset, task: TaskName) -> dict[str, Any]:
    rows = list(read_inline(dataset.rows))
    fields = find_fields(columns_of_rows(rows), columns=dataset.columns, task=task)
    checked = check_rows(rows, fields, task=task)
    seen = _Seen(fields, len(rows), _starts_with_chat(rows, fields), checked.media)
    return {"source": "inline", "digest": digest_of(dataset.rows)} | seen.on_record()


def _check_file(file: Path, fields: TextFields, task: TaskName) -> _Seen:
    classes = read_header([file]).classes.get(fields.label or "")
    rows = read_files([file], used_columns(fields))
    checked = check_rows(rows, fields, task=task, classes=classes)
    is_chat = _starts_with_chat(read_files([file], used_columns(fields)), fields)
    return _Seen(fields, checked.rows, is_chat, checked.media)
