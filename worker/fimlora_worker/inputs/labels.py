"""What the labels of a job's dataset mean, by the rule that the service has checked them by."""

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
