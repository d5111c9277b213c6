"""What is looked at before rows are accepted: how many there are, and each row in use."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fimlora_jobs.datasets.columns import (
    ColumnError,
    TaskName,
    TextFields,
    check_row,
    says_nothing,
    text_columns,
)
from fimlora_jobs.datasets.files import ROWS_SURVEYED, check_names, note_columns, read_files
from fimlora_jobs.datasets.labels import LabelSurvey
from fimlora_jobs.datasets.media import Kind
from fimlora_jobs.datasets.parquet import UPLOAD_LIMITS, check_parquet, read_footer
from fimlora_jobs.datasets.rows import PlacedRow, RowError

MAX_ROWS = 20_000_000


@dataclass(frozen=True, slots=True)
class Checked:
    """What was seen of rows.

    Attributes:
        rows: How many there are; ``None`` if there may be more than were looked at.
        media: Kinds of what they show besides text.
    """

    rows: int | None
    media: tuple[Kind, ...] = ()


@dataclass(frozen=True, slots=True)
class Sighting:
    """What was seen of a file: how many rows, and its columns in order of appearance."""

    rows: int
    columns: Sequence[str]


def survey_upload(path: Path, *, max_rows: int = MAX_ROWS) -> Sighting:
    """Read all of a file once, or the footer of a Parquet file.

    Raises:
        RowError: It is damaged, or beyond a limit that the message names.
    """
    if path.suffix == ".parquet":
        check_parquet(path, UPLOAD_LIMITS)
        footer = read_footer(path)
        sighting = Sighting(footer.rows, check_names(footer.columns))
    else:
        sighting = survey(read_files([path], ()), max_rows=max_rows)
    if sighting.rows > max_rows:
        raise RowError(f"there are {sighting.rows} rows; at most {max_rows} are taken")
    return sighting


def survey(rows: Iterator[PlacedRow], *, max_rows: int = MAX_ROWS) -> Sighting:
    """Read all rows once; the first of them tell the columns."""
    columns: dict[str, None] = {}
    count = 0
    for _, row in rows:
        count += 1
        if count <= ROWS_SURVEYED:
            note_columns(columns, row)
        if count > max_rows:
            break
    return Sighting(count, tuple(columns))


def check_rows(
    rows: Iterable[PlacedRow],
    fields: TextFields,
    *,
    task: TaskName = "auto",
    classes: Sequence[str] | None = None,
    most: int | None = None,
    beside: Path | None = None,
) -> Checked:
    """Check that every row has the columns in use.

    Args:
        rows: The rows.
        fields: The columns in use.
        task: What was asked for.
        classes: Names of the classes, where the dataset declares them.
        most: How many rows are looked at; all by default.
        beside: Folder of the rows, if files in it may be named.

    Returns:
        What was seen.

    Raises:
        ColumnError: Names the row and the column, or no row has any text.
        RowError: Names the row that cannot be read.
    """
    labels = LabelSurvey(fields.label, classes, task) if fields.label else None
    count, media, is_blank = 0, set[Kind](), True
    for where, row in islice(rows, most):
        count += 1
        media |= {kind for kind, _ in check_row(row, fields, where=where, beside=beside)}
        is_blank = is_blank and says_nothing(row, fields)
        if labels:
            labels.see(row[labels.column], where=where)
    is_all = most is None or count < most
    if count and is_all and is_blank:
        raise ColumnError(
            f"all {count} rows are blank: nothing but spaces in {' and '.join(text_columns(fields))}; "
            "give rows with text, or say which column holds it"
        )
    if labels and count:
        labels.close(is_all=is_all)
    return Checked(count if is_all else None, tuple(sorted(media)))
