"""Parquet files: what their footer tells, and their rows in batches bounded by bytes.

A small file may hold cells, pages or repetitions that unpack to more memory than there is. So
sizes are read from the headers before anything is unpacked, and batches are cut to fit. Arrow
takes a while to import, and is imported where there is a Parquet file.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fimlora_jobs.datasets.arrow_values import rows_of_batch, value_bytes
from fimlora_jobs.datasets.labels import MAX_CLASSES
from fimlora_jobs.datasets.parquet_pages import DamagedPage, Page, read_pages
from fimlora_jobs.datasets.rows import MAX_ROW_BYTES, PlacedRow, RowError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MIB = 1 << 20
BATCH_ROWS = 1_024
WIDEST = 8  # bytes of a number in Arrow's memory; equal ones take next to none in the file
NOTHING = "nothing"
MAGIC = b"PAR1"
TAIL = 8  # length of the footer, and the magic word


@dataclass(frozen=True, slots=True)
class ParquetLimits:
    """What a Parquet file may take; each refusal names its limit.

    Attributes:
        footer_bytes: Its footer, which is read whole.
        columns: Its columns, those inside others counted.
        chunks: Columns times row groups.
        page_bytes: One page once unpacked, which is read whole.
        pages: Pages of all columns that are read, whose heads are looked at one by one.
        batch_bytes: Rows that are in memory at once.
        value_bytes: All rows that are read, a value counted as often as a row has it.
        total_bytes: All columns once unpacked; ``None`` for any size.
    """

    footer_bytes: int = 32 * MIB
    columns: int = 10_000
    chunks: int = 200_000
    page_bytes: int = 256 * MIB
    pages: int = 1_000_000
    batch_bytes: int = 64 * MIB
    value_bytes: int = 4_096 * MIB
    total_bytes: int | None = None


LIMITS = ParquetLimits()
UPLOAD_LIMITS = ParquetLimits(total_bytes=2_048 * MIB)


@dataclass(frozen=True)
class Footer:
    """What is known of a Parquet file before any row is read.

    Attributes:
        rows: How many there are.
        columns: Those that hold a value, in order.
        kinds: Of each column, what it holds: ``text``, ``numbers``, ``nothing`` or Arrow's name.
        classes: Names of classes that `datasets` has declared, by column.
    """

    rows: int
    columns: tuple[str, ...]
    kinds: dict[str, str]
    classes: dict[str, tuple[str, ...]]


def read_footer(path: Path, limits: ParquetLimits = LIMITS) -> Footer:
    """What the footer of a Parquet file tells.

    Raises:
        RowError: It is damaged or too large.
    """
    with _opened(path, limits) as file:
        schema, empty = file.schema_arrow, _empty_columns(file.metadata)
        names = [name for name in schema.names if name not in empty]
        return Footer(
            rows=file.metadata.num_rows,
            columns=tuple(dict.fromkeys(names)),
            kinds={f.name: _kind(f.type) if f.name not in empty else NOTHING for f in schema},
            classes=_declared_classes(schema.metadata or {}),
        )


def check_parquet(path: Path, limits: ParquetLimits = LIMITS) -> None:
    """Refuse a Parquet file of which some part would take too much memory, whatever is read.

    Raises:
        RowError: Names the limit.
    """
    with _opened(path, limits) as file:
        _check_total(file.metadata, limits)
        names = set(file.schema_arrow.names)
        pages = _Pages(path, limits)
        for group in _filled_groups(file.metadata):
            _rows_at_once(pages, file.metadata, group, names)


def read_parquet(
    path: Path, columns: Sequence[str], limits: ParquetLimits = LIMITS
) -> Iterator[PlacedRow]:
    """Each row of a Parquet file with its place, ``row 3``; only the columns asked for."""
    number = n_bytes = 0
    for batch in parquet_batches(path, columns, limits):
        n_bytes += sum(map(value_bytes, batch.columns))
        if n_bytes > limits.value_bytes:
            raise RowError(
                f"the rows have more than {limits.value_bytes} bytes; no more are looked at"
            )
        for row in rows_of_batch(batch, after=number):
            number += 1
            yield f"row {number}", row


def parquet_batches(
    path: Path, columns: Sequence[str], limits: ParquetLimits = LIMITS
) -> "Iterator[pa.RecordBatch]":
    """The rows of a Parquet file, some at a time; columns that it lacks are left out.

    Raises:
        RowError: The file is damaged, too large, or has none of the columns.
    """
    import pyarrow as pa

    number = 0
    with _opened(path, limits) as file:
        present = [name for name in file.schema_arrow.names if name in columns]
        if not present and file.metadata.num_rows:
            raise RowError(f"{path.name} has none of the columns {sorted(columns)}")
        pages = _Pages(path, limits)
        try:
            for group in _filled_groups(file.metadata):
                size = _rows_at_once(pages, file.metadata, group, present)
                for batch in file.iter_batches(size, row_groups=[group], columns=present):
                    yield batch.select(present)
                    number += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise RowError(f"the Parquet file is damaged after row {number}") from error


@contextmanager
def _opened(path: Path, limits: ParquetLimits) -> "Iterator[pq.ParquetFile]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_footer(path, limits)
    try:
        with pq.ParquetFile(path) as file:
            _check_shape(file.metadata, limits)
            yield file
    except (pa.ArrowException, OSError, UnicodeError, OverflowError) as error:
        raise RowError("the file is not a sound Parquet file") from error


def _check_footer(path: Path, limits: ParquetLimits) -> None:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - TAIL, 0))
        length = int.from_bytes(file.read(4), "little")
        is_parquet = file.read(4) == MAGIC
    if not is_parquet:
        raise RowError("the file is not a sound Parquet file")
    if length > limits.footer_bytes:
        raise RowError(
            f"the footer of the Parquet file has {length} bytes; at most {limits.footer_bytes} "
            "are read: write fewer columns or larger row groups"
        )


def _check_total(metadata: "pq.FileMetaData", limits: ParquetLimits) -> None:
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    total = sum(group.total_byte_size for group in groups)
    if limits.total_bytes is not None and total > limits.total_bytes:
        raise RowError(
            f"the Parquet file unpacks to {total} bytes; at most {limits.total_bytes} are taken"
        )


def _check_shape(metadata: "pq.FileMetaData", limits: ParquetLimits) -> None:
    n_columns, n_groups = metadata.num_columns, metadata.num_row_groups
    if n_columns > limits.columns:
        raise RowError(
            f"the Parquet file has {n_columns} columns; at most {limits.columns} are read"
        )
    if n_columns * n_groups > limits.chunks:
        raise RowError(
            f"the Parquet file has {n_columns} columns in {n_groups} row groups, "
            f"{n_columns * n_groups} pieces; at most {limits.chunks} are read"
        )


def _filled_groups(metadata: "pq.FileMetaData") -> list[int]:
    """Row groups with rows; one without need not have pages."""
    return [n for n in range(metadata.num_row_groups) if metadata.row_group(n).num_rows]


class _Pages:
    """The pages of a file's columns, counted over all of them.

    Attributes:
        path: The file.
        limits: What it may take.
    """

    def __init__(self, path: Path, limits: ParquetLimits) -> None:
        self.path = path
        self.limits = limits
        self._count = 0

    def of(self, chunk: "pq.ColumnChunkMetaData") -> Iterator[Page]:
        """What each page of a column chunk says of itself.

        Raises:
            RowError: One is damaged or too large, or there are too many.
        """
        start, column = chunk.data_page_offset, chunk.path_in_schema
        if chunk.has_dictionary_page:
            start = min(start, chunk.dictionary_page_offset or start)
        try:
            with self.path.open("rb") as file:
                end = start + chunk.total_compressed_size
                for page in read_pages(file, start=start, end=end):
                    self._check(page, column)
                    yield page
        except (DamagedPage, OSError) as error:
            raise RowError("the Parquet file is damaged") from error

    def _check(self, page: Page, column: str) -> None:
        self._count += 1
        if self._count > self.limits.pages:
            raise RowError(
                f"the Parquet file has more than {self.limits.pages} pages: write larger ones"
            )
        size = max(page.size, page.n_values * WIDEST)
        if size > self.limits.page_bytes:
            raise RowError(
                f"column {column!r} of the Parquet file has a page that unpacks to {size} bytes; "
                f"at most {self.limits.page_bytes} are read: write it with smaller row groups"
            )


def _rows_at_once(
    pages: _Pages, metadata: "pq.FileMetaData", group: int, columns: Collection[str]
) -> int:
    """Rows of a row group that fit in a batch.

    Raises:
        RowError: A page or a cell is too large.
    """
    per_row, n_rows = 1, max(metadata.row_group(group).num_rows, 1)
    for number in range(metadata.num_columns):
        chunk = metadata.row_group(group).column(number)
        if _is_part(chunk.path_in_schema, columns):
            mean = max(chunk.total_uncompressed_size, chunk.num_values * WIDEST) // n_rows
            per_row += max(_cell_bytes(pages, chunk, group), mean)
    return max(min(pages.limits.batch_bytes // per_row, BATCH_ROWS), 1)


def _cell_bytes(pages: _Pages, chunk: "pq.ColumnChunkMetaData", group: int) -> int:
    """Bytes that each cell of a column may take where the column is fullest."""
    mean, dictionary, page_bytes = 0, 0, 0
    for page in pages.of(chunk):
        if page.is_dictionary:
            dictionary = page.size
        else:
            mean = max(mean, page.size // max(page.n_values, 1))
            page_bytes = max(page_bytes, page.size)
    is_large = dictionary * BATCH_ROWS > pages.limits.batch_bytes
    if is_large and chunk.physical_type == "BYTE_ARRAY":
        mean = max(mean, _longest_in_dictionary(pages.path, chunk.path_in_schema, group))
    if mean > MAX_ROW_BYTES:
        raise RowError(
            f"column {chunk.path_in_schema!r} of the Parquet file has a cell of {mean} bytes; "
            f"a row may have {MAX_ROW_BYTES}"
        )
    # Text that is written as what it adds to the text before may be as long as its page.
    return max(mean, page_bytes) if "DELTA_BYTE_ARRAY" in chunk.encodings else mean


def _longest_in_dictionary(path: Path, column: str, group: int) -> int:
    """Few values may stand for many rows, each of which is as long as the longest of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fimlora_jobs.datasets.arrow_values import longest_in_dictionaries

    try:
        with pq.ParquetFile(path, read_dictionary=[column]) as file:
            for batch in file.iter_batches(1, row_groups=[group], columns=[column]):
                return longest_in_dictionaries(batch)
    except (pa.ArrowException, OSError) as error:
        raise RowError("the Parquet file is damaged") from error
    return 0


def _is_part(path: str, columns: Collection[str]) -> bool:
    """Whether a path leads into one of some columns, whose names may have dots themselves."""
    ends = (i for i, letter in enumerate(f"{path}.") if letter == ".")
    return any(path[:end] in columns for end in ends)


def _empty_columns(metadata: "pq.FileMetaData") -> set[str]:
    """Columns without any value, as far as the file counts them: other rows lack them."""
    filled = set()
    paths = [metadata.schema.column(n).path for n in range(metadata.num_columns)]
    for group in range(metadata.num_row_groups):
        for number, path in enumerate(paths):
            if path in filled:
                continue
            chunk = metadata.row_group(group).column(number)
            counts = chunk.statistics
            if not (counts and counts.has_null_count and counts.null_count == chunk.num_values):
                filled.add(path)
    prefixes = {p[:i] for p in filled for i, letter in enumerate(f"{p}.") if letter == "."}
    return set(metadata.schema.to_arrow_schema().names) - prefixes


def _kind(type_: "pa.DataType") -> str:
    from pyarrow import types

    if types.is_dictionary(type_):
        return _kind(type_.value_type)
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return "text"
    if types.is_integer(type_) or types.is_floating(type_) or types.is_boolean(type_):
        return "numbers"
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return f"lists of {_kind(type_.value_type)}"
    if types.is_struct(type_):
        return "objects"
    return NOTHING if types.is_null(type_) else str(type_)[:80]


def _declared_classes(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Names of classes as `datasets` writes them into the schema."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            str(column): tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if _is_classes(feature)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _is_classes(feature: Any) -> bool:
    return (
        isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
        and 0 < len(feature["names"]) <= MAX_CLASSES
    )
