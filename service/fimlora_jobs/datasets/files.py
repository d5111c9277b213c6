"""Data files of any format, one after the other: columns, declared classes and rows."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fimlora_jobs.datasets.columns import ColumnError, TextFields, listed, used_columns
from fimlora_jobs.datasets.csv_rows import csv_header, read_csv
from fimlora_jobs.datasets.parquet import NOTHING, read_footer, read_parquet
from fimlora_jobs.datasets.rows import PlacedRow, Row, RowError, read_jsonl

# Rows whose fields are the columns, where a file does not list them.
ROWS_SURVEYED = 10_000
MAX_COLUMNS = 2_000
MAX_NAME_CHARS = 256


@dataclass(frozen=True)
class Header:
    """What is known of files before their rows are read.

    Attributes:
        columns: Those that hold anything, in order of appearance.
        classes: Names of the classes, by column, where the files declare them.
    """

    columns: tuple[str, ...]
    classes: dict[str, tuple[str, ...]]


def read_header(files: Sequence[Path]) -> Header:
    """What files of one format tell of themselves.

    Raises:
        RowError: A file cannot be read, or has columns beyond the limits.
        ColumnError: Files declare different classes.
    """
    if files[0].suffix == ".parquet":
        return _parquet_header(files)
    if files[0].suffix == ".csv":
        columns = dict.fromkeys(n for f in files for n in csv_header(f, name=f.name) if n)
        return Header(check_names(columns), {})
    rows = islice(read_files(files, ()), ROWS_SURVEYED)
    return Header(columns_of_rows(rows), {})


def _parquet_header(files: Sequence[Path]) -> Header:
    columns: dict[str, None] = {}
    classes: dict[str, tuple[str, ...]] = {}
    for file in files:
        footer = read_footer(file)
        columns |= dict.fromkeys(footer.columns)
        for column, names in footer.classes.items():
            if classes.setdefault(column, names) != names:
                raise ColumnError(
                    f"the files declare different classes for column {column!r}: "
                    f"{listed(classes[column])}, in {file.name} {listed(names)}"
                )
    return Header(check_names(columns), classes)


def columns_of_rows(rows: Iterable[PlacedRow]) -> tuple[str, ...]:
    """Columns of rows that list their own: those that hold anything, in order of appearance."""
    columns: dict[str, None] = {}
    for _, row in rows:
        note_columns(columns, row)
    return tuple(columns)


def note_columns(columns: dict[str, None], row: Row) -> None:
    """Add the columns of a row that are new and hold something.

    A row that lacks a column and one that has null there are the same row in most formats.
    """
    if row.keys() - columns.keys():
        columns |= dict.fromkeys(name for name, value in row.items() if value is not None)
        check_names(columns)


def check_names(names: Sequence[str] | dict[str, None]) -> tuple[str, ...]:
    """Refuse columns that are too many, or whose names are too long to be told of.

    Raises:
        RowError: Names the limit.
    """
    if len(names) > MAX_COLUMNS:
        raise RowError(f"there are {len(names)} columns; at most {MAX_COLUMNS} are taken")
    for name in names:
        if len(name) > MAX_NAME_CHARS:
            raise RowError(
                f"the name of column {name[:40]!r}... has {len(name)} characters; at most "
                f"{MAX_NAME_CHARS} are taken"
            )
    return tuple(names)


def check_kinds(files: Sequence[Path], fields: TextFields) -> None:
    """Refuse Parquet files of which one holds text where another holds something else.

    Numbers of any width are numbers, and text in any of Arrow's forms is text. What a column
    holds in all files alike is checked row by row.

    Raises:
        ColumnError: Names the files and the column.
    """
    first: dict[str, tuple[str, str]] = {}
    for file in files if files[0].suffix == ".parquet" else ():
        kinds = read_footer(file).kinds
        for column in used_columns(fields):
            kind = kinds.get(column, NOTHING)
            if kind == NOTHING:
                continue
            name, before = first.setdefault(column, (file.name, kind))
            if kind != before:
                raise ColumnError(
                    f"column {column!r} holds {before} in {name} and {kind} in {file.name}"
                )


def read_files(files: Sequence[Path], columns: Sequence[str]) -> Iterator[PlacedRow]:
    """All rows of some files, one after the other; places name the file if there are several.

    Args:
        files: Of one format.
        columns: What is read of Parquet files.
    """
    for file in files:
        name = file.name if len(files) > 1 else ""
        yield from _read(file, columns, name=name)


def _read(file: Path, columns: Sequence[str], *, name: str) -> Iterator[PlacedRow]:
    if file.suffix == ".csv":
        yield from read_csv(file, name=name)
    elif file.suffix == ".jsonl":
        yield from read_jsonl(file, name=name)
    else:
        for where, row in read_parquet(file, columns):
            yield f"{name} {where}".lstrip(), row
