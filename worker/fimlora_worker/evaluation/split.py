"""Which rows are trained on and which are held out: decided before anything looks at a row.

Whatever learns from rows, calibration and the fit of a head included, is given the training
rows only. A text that stands on both sides would be tested by heart, so such rows are left out
of the held-out ones, and counted.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from fimlora_contract.evaluations import FEWEST_HELD_OUT
from fimlora_jobs.datasets.columns import TaskName, TextFields
from fimlora_jobs.datasets.labels import Labels
from fimlora_jobs.datasets.table import Rows
from fimlora_worker.errors import DatasetEmpty
from fimlora_worker.evaluation.settings import EvaluationSettings
from fimlora_worker.inputs.labels import find_labels


@dataclass(frozen=True)
class Split:
    """Rows on both sides.

    Attributes:
        train: What may be learned from.
        held_out: What is tested on.
        labels: What the label column of the training rows means, if there is one.
        n_equal_texts: Rows that were not held out, as a training row has their text.
        n_unknown_classes: Rows that were not, as no training row has their class.
    """

    train: Rows
    held_out: Rows
    labels: Labels | None
    n_equal_texts: int
    n_unknown_classes: int


def hold_out(
    rows: Rows,
    fields: TextFields,
    settings: EvaluationSettings,
    *,
    own: Rows | None = None,
    task: TaskName = "auto",
) -> Split:
    """Split rows, the same way whoever does it.

    Args:
        rows: The dataset.
        fields: Which columns carry what.
        settings: How many are held out, and the seed that chooses them.
        own: The rows of a split of the dataset's own to test on; then ``rows`` are all for
            training.
        task: As the request has it.

    Raises:
        DatasetEmpty: Nothing is left to train on, or too few rows to test on.
        DatasetSchema: The training rows have no labels to learn.
    """
    other = rows if own is None else own
    order = np.random.RandomState(settings.split_seed).permutation(other.n_rows)
    wanted = _n_held_out(rows, own, settings)
    candidates = sorted(order[:wanted].tolist())
    train = rows if own is not None else _without(rows, candidates)
    if not train.n_rows or not candidates:
        raise DatasetEmpty(
            f"{other.n_rows} rows are too few to hold out a share of "
            f"{settings.held_out_share:g} of them; give more rows, or a split to test on"
        )
    labels = find_labels(train, fields.label, task) if fields.label else None
    known = {text for _, text in _texts(train, fields)}
    fresh = [n for n, text in _texts(_only(other, candidates), fields) if text not in known]
    named = [candidates[n] for n in fresh]
    usable = named if labels is None else _of_known_class(other, named, fields, labels)
    return _checked(
        Split(
            train=train,
            held_out=_only(other, usable),
            labels=labels,
            n_equal_texts=len(candidates) - len(named),
            n_unknown_classes=len(named) - len(usable),
        )
    )


def _n_held_out(rows: Rows, own: Rows | None, settings: EvaluationSettings) -> int:
    if own is not None:
        return min(settings.n_held_out, own.n_rows)
    return min(settings.n_held_out, int(rows.n_rows * settings.held_out_share))


def _checked(split: Split) -> Split:
    n_left = split.held_out.n_rows
    if n_left < FEWEST_HELD_OUT:
        n_held_out = n_left + split.n_equal_texts + split.n_unknown_classes
        raise DatasetEmpty(
            f"of {n_held_out} held-out rows {split.n_equal_texts} have the text of a training row "
            f"and {split.n_unknown_classes} a class that no training row has; {n_left} are left "
            f"to test on, and at least {FEWEST_HELD_OUT} are needed: give more rows, or a split "
            "to test on that shares no text with them"
        )
    return split


def _texts(rows: Rows, fields: TextFields) -> Iterator[tuple[int, bytes]]:
    """A digest of everything but the label, row by row."""
    columns = [name for role, name in asdict(fields).items() if name and role != "label"]
    for number, cells in enumerate(zip(*map(rows.scan, columns), strict=True)):
        content = json.dumps([value for _, value in cells], sort_keys=True, default=str)
        yield number, blake2b(content.encode("utf-8", "replace"), digest_size=16).digest()


def _of_known_class(
    rows: Rows, numbers: Sequence[int], fields: TextFields, labels: Labels
) -> list[int]:
    if not labels.classes or not numbers:
        return list(numbers)
    assert fields.label
    values = [row[fields.label] for _, row in rows.read_all(numbers, [fields.label])]
    return [
        number for number, value in zip(numbers, values, strict=True) if _has(labels, value)
    ]


def _has(labels: Labels, value: Any) -> bool:
    try:
        labels.target(value)
    except (KeyError, ValueError, TypeError):
        return False
    return True


def _only(rows: Rows, numbers: Sequence[int]) -> Rows:
    """Some rows of a dataset, in its order."""
    chosen = frozenset(numbers)
    return replace(
        rows,
        n_rows=len(numbers),
        read=lambda wanted, columns: rows.read([numbers[i] for i in wanted], columns),
        scan=lambda column: (
            cell for number, cell in enumerate(rows.scan(column)) if number in chosen
        ),
    )


def _without(rows: Rows, numbers: Collection[int]) -> Rows:
    left = frozenset(numbers)
    return _only(rows, [number for number in range(rows.n_rows) if number not in left])
