"""Rows by number: what is drawn from, once all of them are there."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from fimlora_jobs.datasets.rows import (
    PlacedRow,
    Row,
    parquet_batches,
    python_values,
    read_inline,
    read_jsonl,
)


def _declares_none(_column: str) -> None:
    return None


@dataclass(frozen=True)
class Rows:
    """A dataset as numbered rows with named columns.

    Attributes:
        names: Columns, in order.
        n_rows: How many rows there are.
        row: Reads one row.
        column: Reads one column of all rows; null where a row has no such column.
        where: What to call a row in an error, such as ``line 3``.
        classes: Names of the classes if the label column declares them.
    """

    names: tuple[str, ...]
    n_rows: int
    row: Callable[[int], Row]
    column: Callable[[str], Sequence[Any]]
    where: Callable[[int], str]
    classes: Callable[[str], tuple[str, ...] | None] = _declares_none


def inline_rows(rows: Iterable[Row]) -> Rows:
    """The rows of a request.

    Raises:
        RowError: A row holds what text and numbers cannot; the message names it.
    """
    return _from_rows(read_inline(rows))


def rows_of_files(files: Sequence[Path], columns: Sequence[str] | None = None) -> Rows:
    """The rows of files, one file after the other; places name the file.

    Args:
        files: JSONL or Parquet.
        columns: What is read of Parquet files; ``None`` for all columns.

    Raises:
        RowError: A row cannot be read; the message names it.
    """
    return _one_after_the_other([_from_file(file, columns) for file in files])


def _from_file(file: Path, columns: Sequence[str] | None) -> Rows:
    if file.suffix == ".parquet":
        return _from_parquet(file, columns)
    return _from_rows(read_jsonl(file, name=file.name))


def _from_rows(placed: Iterable[PlacedRow]) -> Rows:
    rows = list(placed)
    return Rows(
        names=tuple(dict.fromkeys(name for _, row in rows for name in row)),
        n_rows=len(rows),
        row=lambda i: rows[i][1],
        column=lambda name: [row.get(name) for _, row in rows],
        where=lambda i: rows[i][0],
    )


def _from_parquet(file: Path, columns: Sequence[str] | None) -> Rows:
    """Stays in Arrow's columns, which take a fraction of the memory of Python objects."""
    import pyarrow as pa

    batches = list(parquet_batches(file, columns))
    if not batches:
        return _from_rows(())
    table = pa.Table.from_batches(batches)
    return Rows(
        names=tuple(table.column_names),
        n_rows=table.num_rows,
        row=lambda i: python_values(table.slice(i, 1), after=i)[0],
        column=lambda name: python_values(table.column(name)),
        where=lambda i: f"{file.name} row {i + 1}",
    )


def _one_after_the_other(parts: Sequence[Rows]) -> Rows:
    starts = [0, *accumulate(part.n_rows for part in parts)]

    def find(i: int) -> tuple[Rows, int]:
        number = bisect_right(starts, i) - 1
        return parts[number], i - starts[number]

    def row(i: int) -> Row:
        part, within = find(i)
        return part.row(within)

    def where(i: int) -> str:
        part, within = find(i)
        return part.where(within)

    def column(name: str) -> list[Any]:
        columns = (p.column(name) if name in p.names else [None] * p.n_rows for p in parts)
        return [value for values in columns for value in values]

    return Rows(
        names=tuple(dict.fromkeys(name for part in parts for name in part.names)),
        n_rows=starts[-1],
        row=row,
        column=column,
        where=where,
    )
