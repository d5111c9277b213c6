"""What is looked at before rows are accepted: their columns, and each row of the columns in use.

Memory stays bounded by one line or one record batch, whatever the size of the file.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fimlora_jobs.datasets.columns import ColumnError, TextFields, check_row
from fimlora_jobs.datasets.rows import Row, RowError

MAX_CLASSES = 10_000


@dataclass(frozen=True, slots=True)
class Sighting:
    """What was seen while reading: how many rows, and which columns in order of appearance."""

    rows: int
    columns: list[str]


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
