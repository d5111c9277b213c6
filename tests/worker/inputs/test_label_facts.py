"""What a plan says of its labels: classes that occur, and how often."""

import pytest

from fimlora_jobs.datasets.labels import Labels
from fimlora_worker.inputs.label_facts import class_facts


def labels(*classes):
    return Labels("single_label_classification", classes)


@pytest.mark.parametrize(
    ("ids", "known", "facts"),
    [
        (
            [0, 2, 2, 0, 0],
            labels("ham", "other", "spam"),
            {
                "classes": 3,
                "classes_seen": 2,
                "label_counts": {"ham": 3, "other": 0, "spam": 2},
            },
        ),
        (
            [1],
            labels(-1, 1),
            {"classes": 2, "classes_seen": 1, "label_counts": {"-1": 0, "1": 1}},
        ),
        ([3, 3, 70], labels(*range(99)), {"classes": 99, "classes_seen": 2}),
        ([0.5, 2.0], Labels("regression"), {}),
        ([0, 1], None, {}),
    ],
    ids=["few", "numbers", "many", "regression", "unknown"],
)
def test_classes_are_counted(ids, known, facts):
    """One by one where they are few; numbers are no classes."""
    assert class_facts(ids, known) == facts
