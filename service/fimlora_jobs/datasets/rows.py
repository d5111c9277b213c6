"""Rows of a dataset as service and worker read them: one at a time, each with its place.

Reading takes the memory of one row, whatever the size of the file.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fimlora_jobs.json_values import check_values

MAX_ROW_BYTES = 16 << 20
MAX_ROW_VALUES = 500_000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Row = Mapping[str, Any]
PlacedRow = tuple[str, Row]

CORRECT_FILE = "Correct the rows; files are JSON Lines, CSV with commas between fields, or Parquet, in UTF-8."


class RowError(ValueError):
    """A row cannot be read; the message names it.

    Args:
        message: Where it is, and why.
        next_step: What to do about it; names of columns are no help.
    """

    def __init__(self, message: str, *, next_step: str = CORRECT_FILE) -> None:
        super().__init__(message)
        self.next_step = next_step


def read_inline(rows: Iterable[Row]) -> Iterator[PlacedRow]:
    """Each row of a request with its place, ``row 3``."""
    for number, row in enumerate(rows, 1):
        check_text(row, where=f"row {number}")
        yield f"row {number}", row


@dataclass(frozen=True, slots=True)
class Spot:
    """A row of a file, and where it stands.

    Attributes:
        offset: Its first byte.
        number: Of its first line, from 1.
        row: What it holds.
    """

    offset: int
    number: int
    row: Row


def read_jsonl(path: Path, *, name: str = "") -> Iterator[PlacedRow]:
    """Each row of a JSONL file with its place, ``line 3``; blank lines are skipped.

    Args:
        path: The file.
        name: What the file is called in places, if they name it.
    """
    with path.open("rb") as file:
        for spot in jsonl_spots(file, name=name):
            yield line_place(spot.number, name), spot.row


def line_place(number: int, name: str = "") -> str:
    """What a row of a text file is called."""
    return f"{name} line {number}".lstrip()


def jsonl_spots(file: BinaryIO, *, name: str = "") -> Iterator[Spot]:
    """Each row of a JSONL file just opened."""
    offset = skip_byte_order_mark(file)
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        where = line_place(number, name)
        if len(line) > MAX_ROW_BYTES:
            raise RowError(f"{where} is longer than {MAX_ROW_BYTES} bytes")
        if line.strip():
            yield Spot(offset, number, parse_line(line, where=where))
        offset += len(line)


def skip_byte_order_mark(file: BinaryIO) -> int:
    """Go to the first row of a file just opened; some editors put a mark of UTF-8 before it."""
    if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
        file.seek(0)
    return file.tell()


def parse_line(line: bytes, *, where: str) -> Row:
    """One line as an object of finite numbers and sound text."""
    try:
        check_values(line, most=MAX_ROW_VALUES)
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
