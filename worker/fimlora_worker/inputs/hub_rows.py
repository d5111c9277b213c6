"""Rows of a dataset on the hub, at the commit that a job was accepted with.

`datasets` says which files make a split. Where these are Parquet, JSONL or CSV they are read as
files that an operator has registered: same rows, same plan. `datasets` itself reads the rest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path, PurePath
from typing import Any

import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from rq.timeouts import BaseTimeoutException

from fimlora_contract.references import HubDataset
from fimlora_jobs.datasets.files import check_names
from fimlora_jobs.datasets.folders import by_number
from fimlora_jobs.datasets.rows import PlacedRow
from fimlora_jobs.datasets.table import MOST_BYTES, Rows, rows_of_files
from fimlora_worker.errors import DatasetSchema, DatasetUnreachable

# By the configuration of the part of `datasets` that would read them.
READ_HERE = {"ParquetConfig": ".parquet", "JsonConfig": ".jsonl", "CsvConfig": ".csv"}
# What a configuration may say without saying how its files are to be read.
NEUTRAL = frozenset({"name", "version", "data_dir", "data_files", "description", "features"})
MAX_REASON_CHARS = 300
# What reading broken data or a broken card raises.
_FAULTS = (FileNotFoundError, RuntimeError, ValueError, TypeError, LookupError, yaml.YAMLError)


def open_hub_rows(
    reference: HubDataset, commit: str, *, cache: Path, alive: Callable[[], None]
) -> Rows:
    """Open a split.

    Args:
        reference: The dataset, its configuration and its split.
        commit: Where it is read.
        cache: Folder of what is downloaded.
        alive: Called now and then while many rows are read.

    Raises:
        DatasetUnreachable: The repository, commit, configuration or split is not there, or it
            brings code of its own.
        DatasetSchema: Its files cannot be read as one table.
    """
    from datasets import load_dataset_builder
    from datasets.utils.logging import disable_progress_bar

    if Path(reference.id).exists():  # `datasets` would open a local folder of that name
        raise DatasetUnreachable(f"a local folder hides the dataset {reference.id!r}")
    disable_progress_bar()
    with named_errors(reference.id, cache=cache):
        builder = load_dataset_builder(
            reference.id, reference.config, revision=commit, cache_dir=str(cache)
        )
    names = _plain_files(builder, reference, commit)
    if not names:
        return _loaded(builder, reference, cache)
    files = [_download(reference.id, name, commit, cache, alive) for name in names]
    rows = rows_of_files(files, alive=alive)
    return replace(rows, classes={**rows.classes, **_declared(builder.info.features)})


def _loaded(builder: Any, reference: HubDataset, cache: Path) -> Rows:
    with named_errors(reference.id, cache=cache):
        # What the card says of sizes is not what is calibrated on.
        builder.download_and_prepare(verification_mode="no_checks")
        return dataset_rows(builder.as_dataset(split=reference.split))


def dataset_rows(dataset: Any) -> Rows:
    """The rows of a `datasets.Dataset`, which lie on disk and are decoded one by one."""
    # Images and sounds stay as they are stored: who decodes them looks at their size first.
    is_stored = "Image(" in repr(dataset.features) or "Audio(" in repr(dataset.features)

    def read(numbers: Sequence[int], columns: Sequence[str]) -> list[PlacedRow]:
        used = dataset.select_columns([c for c in dataset.column_names if c in columns])
        used = used.with_format("arrow") if is_stored else used
        found: list[PlacedRow] = []
        n_bytes = 0
        for i in numbers:
            row = used[i].to_pylist()[0] if is_stored else dict(used[i])
            n_bytes += len(repr(row))
            if found and n_bytes > MOST_BYTES:
                break
            found.append((f"row {i + 1}", row))
        return found

    def scan(column: str) -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(dataset.select_columns([column]), 1):
            yield f"row {number}", row[column]

    table = dataset.data.table
    filled = [c for c in table.column_names if table.column(c).null_count < table.num_rows]
    return Rows(check_names(filled), dataset.num_rows, read, scan, _declared(dataset.features))


def _declared(features: Any) -> Mapping[str, tuple[str, ...]]:
    named = ((name, getattr(f, "names", None)) for name, f in (features or {}).items())
    return {name: tuple(names) for name, names in named if names}


def _plain_files(builder: Any, reference: HubDataset, commit: str) -> list[str]:
    """Paths of the split's files, in the order of reading, if they can be read as they are."""
    config = builder.config
    splits = {str(split): urls for split, urls in (config.data_files or {}).items()}
    if reference.split not in splits or not _is_plain(config):
        return []
    prefix = f"hf://datasets/{reference.id}@{commit}/"
    paths = [url.removeprefix(prefix) for url in splits[reference.split]]
    is_here = all(url.startswith(prefix) for url in splits[reference.split])
    suffixes = {PurePath(path).suffix for path in paths}
    suffix = READ_HERE.get(type(config).__name__)
    return sorted(paths, key=by_number) if is_here and suffixes == {suffix} else []


def _is_plain(config: Any) -> bool:
    """Whether a configuration leaves open how files are read."""
    return all(
        field.name in NEUTRAL or getattr(config, field.name) == field.default
        for field in fields(config)
    )


def _download(id_: str, name: str, commit: str, cache: Path, alive: Callable[[], None]) -> Path:
    from huggingface_hub import hf_hub_download

    alive()
    path = hf_hub_download(id_, name, repo_type="dataset", revision=commit, cache_dir=cache)
    return Path(path)


@contextmanager
def named_errors(id_: str, *, cache: Path) -> Iterator[None]:
    """Say what is wrong with a dataset; what is wrong with the hub or this machine passes.

    Args:
        id_: The dataset.
        cache: A folder that no message shows.

    Raises:
        DatasetUnreachable: There are no such data, or code would have to run.
        DatasetSchema: The data cannot be read.
    """
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (*_FAULTS, DatasetsError) as error:
        cause = error.__cause__ or error
        if _is_ours(cause):
            raise cause from error
        reason = " ".join(str(cause).replace(str(cache), "").split())[:MAX_REASON_CHARS]
        if isinstance(error, RuntimeError) and "scripts" in reason:
            raise DatasetUnreachable(
                f"dataset {id_!r} brings a loading script, which is never run; give it as Parquet, "
                "JSONL or CSV files"
            ) from error
        kind = (
            DatasetUnreachable
            if isinstance(error, FileNotFoundError | ValueError)
            else DatasetSchema
        )
        raise kind(f"dataset {id_!r}: {reason or type(cause).__name__}") from error


def _is_ours(error: BaseException) -> bool:
    """Whether an error is about the hub or this machine, and not about the data."""
    if isinstance(error, FileNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return False
    return isinstance(error, OSError | MemoryError | BaseTimeoutException)
