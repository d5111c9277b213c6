"""What the labels of a job's dataset mean, by the rule that the service has checked them by."""

from collections.abc import Iterable, Sequence
from typing import Any

from fimlora_jobs.datasets.columns import ColumnError, TaskName
from fimlora_jobs.datasets.labels import Labels, LabelSurvey
from fimlora_jobs.datasets.rows import RowError
from fimlora_jobs.datasets.table import Rows
from fimlora_worker.errors import DatasetSchema


def find_labels(rows: Rows, column: str, task: TaskName = "auto") -> Labels:
    """Read what the labels are from the whole column.

    Classes that the dataset declares keep their ids; others are numbered in sorted order,
    so that a shuffled copy of the data gives the same head.

    Raises:
        DatasetSchema: A label is missing or of another kind than the rest, or all are equal.
    """
    survey = LabelSurvey(column, rows.classes.get(column), task)
    try:
        for where, value in rows.scan(column):
            survey.see(value, where=where)
        labels = survey.close()
    except (ColumnError, RowError) as error:
        raise DatasetSchema(str(error)) from error
    assert labels is not None  # all rows were seen
    return labels


def check_labels(labels: Labels, found: Iterable[tuple[str, Any]]) -> None:
    """See that another dataset labels its rows as the one that a head is made for.

    Args:
        labels: What the labels of that one mean.
        found: The labels of the other, each with the name of its row.

    Raises:
        DatasetSchema: One is no class of the head, or no number; names the row.
    """
    for where, value in found:
        try:
            labels.target(value)
        except (KeyError, TypeError, ValueError):
            known = ", ".join(map(repr, labels.classes[:10])) or "numbers"
            more = ", ..." if len(labels.classes) > 10 else ""
            raise DatasetSchema(
                f"retain: {where} is labelled {str(value)[:40]!r}, and the dataset has {known}{more}: "
                "the head is that of the dataset; leave such rows out"
            ) from None


def check_declared(declared: Sequence[str] | None, others: Sequence[str] | None) -> None:
    """See that two datasets mean the same classes by their numbers, where both name them.

    Raises:
        DatasetSchema: They do not.
    """
    if declared and others and tuple(declared) != tuple(others):
        one, other = (", ".join(names[:10]) for names in (declared, others))
        raise DatasetSchema(
            f"retain: its classes are {other}, and those of the dataset {one}: one number would "
            "mean two classes; give labels as text in both"
        )
