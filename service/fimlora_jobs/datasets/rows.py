"""Rows of a dataset, one at a time: read, refused by line, checked for the columns in use.

Memory stays bounded by one line or one record batch, whatever the size of the file. Arrow takes
a while to import, and is imported where there is a Parquet file.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fimlora_jobs.datasets.columns import ColumnError, TextFields, check_row
from fimlora_jobs.datasets.jsonl import skip_byte_order_mark

MAX_LINE_BYTES = 16 << 20
MAX_CLASSES = 10_000
BATCH_ROWS = 1_024

Row = Mapping[str, Any]


class RowError(ValueError):
    """A row cannot be read; the message names it."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What was seen while reading: how many rows, and which columns in order of appearance."""

    rows: int
    columns: list[str]


def read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    """Each row of a JSONL file with its place, ``line 3``; blank lines are skipped."""
    with path.open("rb") as file:
        skip_byte_order_mark(file)
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise RowError(f"line {number} is longer than {MAX_LINE_BYTES} bytes")
            if line.strip():
                yield f"line {number}", parse_line(line, where=f"line {number}")


def parse_line(line: bytes, *, where: str) -> Row:
    """One line as an object of finite numbers and sound text."""
    try:
        row = json.loads(line.decode(), parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise RowError(f"{where} is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise RowError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where} cannot be read: {_reason(error)}") from error
    if not isinstance(row, dict):
        raise RowError(f"{where} is not an object with one field per column")
    if rb"\u" in line:
        check_text(row, where=where)
    return row


def check_text(row: Row, *, where: str) -> None:
    """Refuse what JSON can spell but text and numbers cannot hold: lone surrogates, NaN."""
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{where} holds half a character (a lone surrogate)") from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where} cannot be read: {_reason(error)}") from error


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is too large")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "an integer has too many digits" if "digits" in str(error) else str(error)


def survey(rows: Iterable[tuple[str, Row]]) -> Sighting:
    """Read all rows once."""
    columns: dict[str, None] = {}
    count = 0
    for _, row in rows:
        count += 1
        if row.keys() - columns.keys():
            columns |= dict.fromkeys(row)
    return Sighting(count, list(columns))


def survey_parquet(path: Path) -> Sighting:
    """Count and columns from a Parquet file's footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return Sighting(file.metadata.num_rows, list(file.schema_arrow.names))
    except (pa.ArrowException, OSError) as error:
        raise RowError("the file is not a sound Parquet file") from error


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Each row of a Parquet file with its place, only the columns asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise RowError(f"the Parquet file is damaged after row {number}") from error


@dataclass(slots=True)
class LabelCheck:
    """Watch the labels go by: all text or all numbers, finite, and at least two classes.

    Attributes:
        column: Name of the label column.
    """

    column: str
    classes: set[Any] = field(default_factory=set)
    is_text: bool | None = None
    has_floats: bool = False

    def see(self, row: Row, *, where: str) -> None:
        """Check one row's label."""
        label = row[self.column]
        if self.is_text is None:
            self.is_text = isinstance(label, str)
        if isinstance(label, str) is not self.is_text:
            raise ColumnError(f"{where}: column {self.column!r} mixes text and numbers")
        if isinstance(label, float):
            self.has_floats = True
            if not math.isfinite(label):
                raise ColumnError(f"{where}: column {self.column!r} holds {label}")
        if len(self.classes) <= MAX_CLASSES:
            self.classes.add(label)

    def close(self) -> None:
        """Check what the labels are together."""
        if self.has_floats:
            return
        if len(self.classes) < 2:
            only = sorted(map(str, self.classes))
            raise ColumnError(
                f"column {self.column!r} holds the one label {only}; a classification needs two"
            )
        if len(self.classes) > MAX_CLASSES:
            raise ColumnError(
                f"column {self.column!r} holds more than {MAX_CLASSES} different labels"
            )


def check_rows(rows: Iterable[tuple[str, Row]], fields: TextFields) -> int:
    """Check that every row has the columns in use, and return how many rows there are.

    Raises:
        ColumnError: Names the row and the column.
        RowError: Names the row that cannot be read.
    """
    labels = LabelCheck(fields.label) if fields.label else None
    count = 0
    for where, row in rows:
        count += 1
        check_row(row, fields, where=where)
        if labels:
            labels.see(row, where=where)
    if labels and count:
        labels.close()
    return count
