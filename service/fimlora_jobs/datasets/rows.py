"""Rows of a dataset as service and worker read them: one at a time, each with its place.

Reading takes the memory of one line or one record batch, whatever the size of the file. Arrow
takes a while to import, and is imported where there is a Parquet file.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import pyarrow as pa

MAX_LINE_BYTES = 16 << 20
BATCH_ROWS = 1_024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Row = Mapping[str, Any]
PlacedRow = tuple[str, Row]


class RowError(ValueError):
    """A row cannot be read; the message names it."""


def read_inline(rows: Iterable[Row]) -> Iterator[PlacedRow]:
    """Each row of a request with its place, ``row 3``."""
    for number, row in enumerate(rows, 1):
        check_text(row, where=f"row {number}")
        yield f"row {number}", row


def read_jsonl(path: Path, *, name: str = "") -> Iterator[PlacedRow]:
    """Each row of a JSONL file with its place, ``line 3``; blank lines are skipped.

    Args:
        path: The file.
        name: What the file is called in places, if they name it.
    """
    with path.open("rb") as file:
        _skip_byte_order_mark(file)
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{name} line {number}".lstrip()
            if len(line) > MAX_LINE_BYTES:
                raise RowError(f"{where} is longer than {MAX_LINE_BYTES} bytes")
            if line.strip():
                yield where, parse_line(line, where=where)


def _skip_byte_order_mark(file: BinaryIO) -> None:
    """Go to the first row of a file just opened; some editors put a mark of UTF-8 before it."""
    if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
        file.seek(0)


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[PlacedRow]:
    """Each row of a Parquet file with its place, ``row 3``; only the columns asked for."""
    number = 0
    for batch in parquet_batches(path, columns):
        for row in python_values(batch, after=number):
            number += 1
            yield f"row {number}", row


def parquet_batches(
    path: Path, columns: Sequence[str] | None = None
) -> "Iterator[pa.RecordBatch]":
    """The rows of a Parquet file, some at a time; columns that it lacks are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    wanted = None if columns is None else list(columns)
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                yield batch
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _damaged(number) from error


def python_values(
    arrow: "pa.RecordBatch | pa.Table | pa.ChunkedArray", *, after: int = 0
) -> list[Any]:
    """Rows, or the values of one column, as Python objects; ``after`` so many others."""
    import pyarrow as pa

    try:
        values: list[Any] = arrow.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise _damaged(after) from error
    return values


def _damaged(after: int) -> RowError:
    return RowError(f"the Parquet file is damaged after row {after}")


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
