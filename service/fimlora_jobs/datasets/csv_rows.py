"""Rows of a CSV file: text under the names of its first line.

Read by the standard library: every cell stays the text that it is, a row takes the memory of
one record, and each has the number of its line. Arrow's reader guesses types block by block,
so that what a cell is would depend on its neighbours.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from fimlora_jobs.datasets.rows import (
    MAX_ROW_BYTES,
    MAX_ROW_VALUES,
    PlacedRow,
    RowError,
    Spot,
    line_place,
    skip_byte_order_mark,
)
from fimlora_jobs.json_values import TooManyValues, check_values

# The reader's own limit, of 128 KiB a cell, is one number for the whole process.
csv.field_size_limit(MAX_ROW_BYTES)
OTHER_SEPARATORS = (";", "\t", "|")


def read_csv(path: Path, *, name: str = "") -> Iterator[PlacedRow]:
    """Each row of a CSV file with its place, ``line 3``; blank lines are skipped.

    Args:
        path: The file.
        name: What the file is called in places, if they name it.
    """
    with path.open("rb") as file:
        for spot in csv_spots(file, name=name):
            yield line_place(spot.number, name), spot.row


def csv_spots(file: BinaryIO, *, name: str = "") -> Iterator[Spot]:
    """Each row of a CSV file just opened.

    Raises:
        RowError: A row cannot be read, or has another number of cells than the first line.
    """
    header: list[str] | None = None
    for offset, number, cells in _records(file, name):
        where = line_place(number, name)
        if header is None:
            header = _check_header(cells, where)
            continue
        yield Spot(offset, number, _row(header, cells, where))


def csv_row(
    file: BinaryIO, header: list[str], *, offset: int, number: int, name: str
) -> Mapping[str, str]:
    """One row, of a file that was read before, from where it stands.

    Raises:
        RowError: It is not there any more.
    """
    file.seek(offset)
    where = line_place(number, name)
    for _, _, cells in _records(file, name, offset=offset, number=number - 1):
        return _row(header, cells, where)
    raise RowError(f"{where} is not there any more")


def csv_header(path: Path, *, name: str = "") -> list[str]:
    """Names of the columns, as the first line has them; none of an empty file."""
    with path.open("rb") as file:
        for _, number, cells in _records(file, name):
            return _check_header(cells, line_place(number, name))
    return []


def _records(
    file: BinaryIO, name: str, *, offset: int | None = None, number: int = 0
) -> Iterator[tuple[int, int, list[str]]]:
    """Offset, line and cells of each record that is not blank."""
    start = skip_byte_order_mark(file) if offset is None else offset
    lines = _Lines(file, name, offset=start, number=number)
    reader = csv.reader(lines, strict=True)
    while True:
        begin, first = lines.begin_record(), lines.number + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise RowError(f"{line_place(first, name)} is not CSV: {error}") from error
        if cells is None:
            return
        if cells:
            yield begin, first, cells


class _Lines:
    """The lines of a file as text, counted; a record may have several."""

    def __init__(self, file: BinaryIO, name: str, *, offset: int, number: int) -> None:
        self._file = file
        self._name = name
        self._offset = self._begin = offset
        self.number = number

    def begin_record(self) -> int:
        """Where the next record starts."""
        self._begin = self._offset
        return self._begin

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._offset += len(line)
        where = line_place(self.number, self._name)
        if self._offset - self._begin > MAX_ROW_BYTES:
            raise RowError(f"the row that ends in {where} is longer than {MAX_ROW_BYTES} bytes")
        try:
            check_values(line, most=MAX_ROW_VALUES)
        except TooManyValues as error:
            raise RowError(f"{where} has more than {MAX_ROW_VALUES:,} cells") from error
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise RowError(f"{where} is not UTF-8 at byte {error.start}") from error


def _check_header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise RowError(f"{where} names the column {twice[0][:40]!r} more than once")
    if not any(names):
        raise RowError(f"{where} names no column; the first line of a CSV file must name them")
    [separator] = [s for s in OTHER_SEPARATORS if len(names) == 1 and s in names[0]][:1] or [""]
    if separator:
        raise RowError(
            f"{where} is separated by {separator!r}; a CSV file needs commas between its fields",
            next_step="Write the file with commas, such as by pandas: "
            f"read_csv(FILE, sep={separator!r}).to_csv(FILE, index=False).",
        )
    return names


def _row(header: list[str], cells: list[str], where: str) -> Mapping[str, str]:
    if len(cells) != len(header):
        raise RowError(
            f"{where} has {len(cells)} cells, but the first line names {len(header)} columns"
        )
    # What a table was numbered by is written without a name.
    return {name: cell for name, cell in zip(header, cells, strict=True) if name}
