"""Rows by number: what is drawn from, without all of them in memory."""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from fimlora_jobs.datasets.arrow_values import rows_of_batch
from fimlora_jobs.datasets.csv_rows import csv_header, csv_row, csv_spots
from fimlora_jobs.datasets.files import columns_of_rows, read_files, read_header
from fimlora_jobs.datasets.parquet import parquet_batches, read_footer
from fimlora_jobs.datasets.rows import (
    PlacedRow,
    Row,
    Spot,
    jsonl_spots,
    line_place,
    parse_line,
    read_inline,
)

# Rows between two signs of life, where reading them takes long.
ROWS_PER_SIGN = 1_000


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Rows:
    """A dataset as numbered rows with named columns.

    Attributes:
        names: Columns that hold anything, in order.
        n_rows: How many rows there are.
        read: The rows of some numbers in that order, each with what an error calls it; of the
            columns named.
        scan: One column of all rows, each value with its row's place; null where a row lacks it.
        classes: Names of the classes, by column, where the dataset declares them.
    """

    names: tuple[str, ...]
    n_rows: int
    read: Callable[[Sequence[int], Sequence[str]], list[PlacedRow]]
    scan: Callable[[str], Iterator[tuple[str, Any]]]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


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


def rows_of_files(files: Sequence[Path], *, alive: Callable[[], None] = _nothing) -> Rows:
    """The rows of files, one file after the other; places name the file.

    Args:
        files: Of one format.
        alive: Called now and then while many rows are read.

    Raises:
        RowError: A row cannot be read; the message names it.
    """
    header = read_header(files)
    parts = [
        _PARTS[file.suffix](file, file.name if len(files) > 1 else "", alive) for file in files
    ]
    starts = [0, *accumulate(part.n_rows for part in parts)]

    def read(numbers: Sequence[int], columns: Sequence[str]) -> list[PlacedRow]:
        wanted: dict[int, list[int]] = {}
        for number in numbers:
            part = bisect_right(starts, number) - 1
            wanted.setdefault(part, []).append(number - starts[part])
        found = {
            starts[part] + within: row
            for part, here in wanted.items()
            for within, row in zip(here, parts[part].read(here, columns), strict=True)
        }
        return [found[number] for number in numbers]

    def scan(column: str) -> Iterator[tuple[str, Any]]:
        for number, (where, row) in enumerate(read_files(files, [column])):
            if number % ROWS_PER_SIGN == 0:
                alive()
            yield where, row.get(column)

    return Rows(header.columns, starts[-1], read, scan, header.classes)


@dataclass(frozen=True)
class _Part:
    """The rows of one file."""

    n_rows: int
    read: Callable[[Sequence[int], Sequence[str]], list[PlacedRow]]


def _parquet_part(file: Path, name: str, alive: Callable[[], None]) -> _Part:
    """Is read anew for each draw: a file may unpack to more than there is memory."""

    def read(numbers: Sequence[int], columns: Sequence[str]) -> list[PlacedRow]:
        wanted, found, start = sorted(numbers), {}, 0
        for batch in parquet_batches(file, columns):
            alive()
            end = start + batch.num_rows
            here = wanted[bisect_right(wanted, start - 1) : bisect_right(wanted, end - 1)]
            for number in here:
                [row] = rows_of_batch(batch.slice(number - start, 1), after=number)
                found[number] = (f"{name} row {number + 1}".lstrip(), row)
            start = end
        return [found[number] for number in numbers]

    return _Part(read_footer(file).rows, read)


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

    def read(numbers: Sequence[int], _: Sequence[str]) -> list[PlacedRow]:
        with file.open("rb") as opened:
            return [
                (line_place(lines[i], name), row_at(opened, offsets[i], lines[i]))
                for i in numbers
            ]

    return _Part(len(offsets), read)


_PARTS: dict[str, Callable[[Path, str, Callable[[], None]], _Part]] = {
    ".parquet": _parquet_part,
    ".jsonl": _jsonl_part,
    ".csv": _csv_part,
}
