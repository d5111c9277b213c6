"""What the labels of a dataset mean: classes in a fixed order, or numbers to regress on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fimlora_jobs.datasets.table import Rows
from fimlora_worker.errors import DatasetSchema

ProblemType = Literal["single_label_classification", "regression"]
Label = str | int | float
UNLABELLED = -1  # what `datasets` gives a row of a hidden test split


@dataclass(frozen=True)
class Labels:
    """How label values become targets.

    Attributes:
        problem_type: Transformers' word for the loss.
        classes: Class of each id; for regression empty.
    """

    problem_type: ProblemType
    classes: tuple[Label, ...] = ()

    @property
    def n_outputs(self) -> int:
        """Outputs of the head."""
        return len(self.classes) or 1

    def target(self, value: Label) -> int | float:
        """The id of a class, or the number itself."""
        return self.classes.index(value) if self.classes else float(value)


def find_labels(rows: Rows, column: str) -> Labels:
    """Read what the labels are from the whole column.

    Classes that the dataset declares keep their ids; others are numbered in sorted order,
    so that a shuffled copy of the data gives the same head.

    Raises:
        DatasetSchema: A label is missing or of another kind than the rest, or all are equal.
    """
    declared = rows.classes(column)
    if declared:
        return Labels("single_label_classification", tuple(range(len(declared))))
    values = rows.column(column)
    _check_kinds(values, rows, column)
    if any(isinstance(value, float) for value in values):
        return Labels("regression")
    classes = sorted(set(values))
    if len(classes) < 2:
        raise DatasetSchema(
            f"column {column!r} holds the one label {classes[0]!r} in all {len(values)} rows; "
            "classification needs at least two"
        )
    return Labels("single_label_classification", tuple(classes))


def _check_kinds(values: Sequence[Any], rows: Rows, column: str) -> None:
    first = values[0]
    kind = str if isinstance(first, str) else (int, float)
    for i, value in enumerate(values):
        if value is None or not isinstance(value, str | int | float):
            raise DatasetSchema(
                f"{rows.where(i)}: column {column!r} must be a label (text, integer or number), "
                f"it holds {'nothing' if value is None else type(value).__name__}"
            )
        if not isinstance(value, kind):
            raise DatasetSchema(
                f"{rows.where(i)}: column {column!r} holds {value!r}, "
                f"but {rows.where(0)} holds {first!r}: labels must be all text or all numbers"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise DatasetSchema(f"{rows.where(i)}: column {column!r} holds {value}")
