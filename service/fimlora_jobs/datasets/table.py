"""Rows by number: what is drawn from, without all of them in memory."""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import accumulate, count, takewhile
from pathlib import Path
from typing import Any, BinaryIO

from fimlora_jobs.datasets.arrow_values import rows_of_batch, value_bytes
from fimlora_jobs.datasets.csv_rows import csv_header, csv_row, csv_spots
from fimlora_jobs.datasets.files import columns_of_rows, read_files, read_header
from fimlora_jobs.datasets.parquet import parquet_batches, read_footer
from fimlora_jobs.datasets.rows import (
    PlacedRow,
    Row,
    RowError,
    Spot,
    jsonl_spots,
    line_place,
    parse_line,
    read_inline,
)

# Rows between two signs of life, where reading them takes long.
ROWS_PER_SIGN = 1_000
# Of rows that are read at once.
MOST_BYTES = 256 << 20


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Rows:
    """A dataset as numbered rows with named columns.

    Attributes:
        names: Columns that hold anything, in order.
        n_rows: How many rows there are.
        read: The rows of some numbers in that order, each with what an error calls it; of the
            columns named. Of rows so large that they would fill memory, the first of them: one at
            least.
        scan: One column of all rows, each value with its row's place; null where a row lacks it.
        classes: Names of the classes, by column, where the dataset declares them.
        beside: Folder of the rows, if files in it may be named.
    """

    names: tuple[str, ...]
    n_rows: int
    read: Callable[[Sequence[int], Sequence[str]], list[PlacedRow]]
    scan: Callable[[str], Iterator[tuple[str, Any]]]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    beside: Path | None = None

    def read_all(self, numbers: Sequence[int], columns: Sequence[str]) -> Iterator[PlacedRow]:
        """The rows of all numbers, as many at a time as are read at once."""
        start = 0
        while start < len(numbers):
            found = self.read(numbers[start:], columns)
            start += len(found)
            yield from found


def inline_rows(rows: Iterable[Row]) -> Rows:
    """The rows of a request.

    Raises:
        RowError: A row holds what text and numbers cannot; the message names it.
    """
    placed = list(read_inline(rows))
    return Rows(
        names=columns_of_rows(placed),
        n_rows=len(placed),
        read=lambda numbers, _: [placed[i] for i in numbers],
        scan=lambda column: ((where, row.get(column)) for where, row in placed),
    )


def rows_of_files(
    files: Sequence[Path],
    *,
    alive: Callable[[], None] = _nothing,
    most_bytes: int = MOST_BYTES,
) -> Rows:
    """The rows of files, one file after the other; places name the file.

    Args:
        files: Of one format.
        alive: Called now and then while many rows are read.
        most_bytes: Of rows that are read at once.

    Raises:
        RowError: A row cannot be read; the message names it.
    """
    header = read_header(files)
    parts = [
        _PARTS[file.suffix](file, file.name if len(files) > 1 else "", alive) for file in files
    ]
    starts = [0, *accumulate(part.n_rows for part in parts)]

    def read(numbers: Sequence[int], columns: Sequence[str]) -> list[PlacedRow]:
        wanted: dict[int, list[int]] = {}  # the file of the first number comes first
        for number in numbers:
            part = bisect_right(starts, number) - 1
            wanted.setdefault(part, []).append(number - starts[part])
        found: dict[int, PlacedRow] = {}
        left = most_bytes
        for part, here in wanted.items():
            rows, n_bytes = parts[part].read(here, columns, left, not found)
            found |= {starts[part] + n: row for n, row in zip(here, rows, strict=False)}
            left -= n_bytes
            if left <= 0:
                break
        rows_read = [found[number] for number in takewhile(found.__contains__, numbers)]
        if numbers and not rows_read:
            raise RowError(
                f"the files say that they have {starts[-1]} rows, and row {numbers[0] + 1} is not "
                "there: one of them is damaged"
            )
        return rows_read

    def scan(column: str) -> Iterator[tuple[str, Any]]:
        for number, (where, row) in enumerate(read_files(files, [column])):
            if number % ROWS_PER_SIGN == 0:
                alive()
            yield where, row.get(column)

    return Rows(header.columns, starts[-1], read, scan, header.classes)


@dataclass(frozen=True)
class _Part:
    """The rows of one file.

    Attributes:
        n_rows: How many there are.
        read: Rows by number, the first of them that have no more than so many bytes together,
            one at least if that is asked for; and the bytes that they have.
    """

    n_rows: int
    read: Callable[[Sequence[int], Sequence[str], int, bool], tuple[list[PlacedRow], int]]


def _parquet_part(file: Path, name: str, alive: Callable[[], None]) -> _Part:
    """Is read anew for each draw: a file may unpack to more than there is memory."""

    def read(
        numbers: Sequence[int], columns: Sequence[str], most_bytes: int, needs_one: bool
    ) -> tuple[list[PlacedRow], int]:
        wanted, start = sorted(numbers), 0
        found = _Found(numbers, most_bytes, at_least=int(needs_one))
        for batch in parquet_batches(file, columns):
            alive()
            end = start + batch.num_rows
            for number in wanted[
                bisect_right(wanted, start - 1) : bisect_right(wanted, end - 1)
            ]:
                one = batch.slice(number - start, 1)
                if found.takes(number, sum(map(value_bytes, one.columns))):
                    [row] = rows_of_batch(one, after=number)
                    found.put(number, (f"{name} row {number + 1}".lstrip(), row))
            start = end
        return found.rows(), found.n_bytes

    return _Part(read_footer(file).rows, read)


class _Found:
    """Rows as they are come upon, of which the last ones in order are given up to make room.

    Args:
        numbers: Those that are wanted, in order.
        most_bytes: Of rows that are kept.
        at_least: 1 if the first is kept whatever it has, else 0.
    """

    def __init__(self, numbers: Sequence[int], most_bytes: int, *, at_least: int) -> None:
        self._at_least = at_least
        self._places = {number: place for place, number in enumerate(numbers)}
        self._most_bytes = most_bytes
        self._end = len(numbers)
        self._kept: dict[int, tuple[PlacedRow | None, int]] = {}
        self._last_first: list[int] = []
        self.n_bytes = 0

    def takes(self, number: int, n_bytes: int) -> bool:
        """Make room for a row of so many bytes, unless others go before it."""
        place = self._places[number]
        if place >= self._end:
            return False
        self._kept[place] = None, n_bytes
        heappush(self._last_first, -place)
        self.n_bytes += n_bytes
        while self.n_bytes > self._most_bytes and len(self._kept) > self._at_least:
            self._give_up_last()
        if self.n_bytes > self._most_bytes and 0 not in self._kept:  # it is still to come
            self._give_up_last()
        return place in self._kept

    def _give_up_last(self) -> None:
        self._end = -heappop(self._last_first)
        self.n_bytes -= self._kept.pop(self._end)[1]

    def put(self, number: int, row: PlacedRow) -> None:
        """Keep a row that was taken."""
        place = self._places[number]
        self._kept[place] = row, self._kept[place][1]

    def rows(self) -> list[PlacedRow]:
        """The rows up to the first that was given up, or not come upon, in the order wanted."""
        rows: list[PlacedRow] = []
        for place in takewhile(self._kept.__contains__, count()):
            row = self._kept[place][0]
            assert row is not None, "taken and not put"
            rows.append(row)
        return rows


def _jsonl_part(file: Path, name: str, alive: Callable[[], None]) -> _Part:
    def row_at(opened: BinaryIO, offset: int, number: int) -> Row:
        opened.seek(offset)
        return parse_line(opened.readline(), where=line_place(number, name))

    return _text_part(file, name, jsonl_spots, row_at, alive)


def _csv_part(file: Path, name: str, alive: Callable[[], None]) -> _Part:
    header = csv_header(file, name=name)

    def row_at(opened: BinaryIO, offset: int, number: int) -> Row:
        return csv_row(opened, header, offset=offset, number=number, name=name)

    return _text_part(file, name, csv_spots, row_at, alive)


def _text_part(
    file: Path,
    name: str,
    spots: Callable[..., Iterator[Spot]],
    row_at: Callable[[BinaryIO, int, int], Row],
    alive: Callable[[], None],
) -> _Part:
    """Remembers where the rows stand: two numbers for each, whatever they hold."""
    offsets, lines = array("Q"), array("Q")
    with file.open("rb") as opened:
        for count, spot in enumerate(spots(opened, name=name)):
            if count % ROWS_PER_SIGN == 0:
                alive()
            offsets.append(spot.offset)
            lines.append(spot.number)

        end = opened.tell()
    offsets.append(end)

    def read(
        numbers: Sequence[int], _: Sequence[str], most_bytes: int, needs_one: bool
    ) -> tuple[list[PlacedRow], int]:
        found: list[PlacedRow] = []
        n_bytes = 0
        with file.open("rb") as opened:
            for i in numbers:
                size = offsets[i + 1] - offsets[i]
                if n_bytes + size > most_bytes and (found or not needs_one):
                    break
                n_bytes += size
                found.append((line_place(lines[i], name), row_at(opened, offsets[i], lines[i])))
        return found, n_bytes

    return _Part(len(lines), read)


_PARTS: dict[str, Callable[[Path, str, Callable[[], None]], _Part]] = {
    ".parquet": _parquet_part,
    ".jsonl": _jsonl_part,
    ".csv": _csv_part,
}
