"""What the labels of a dataset mean, by one rule wherever its rows come from.

Labels are compared by value: ``true``, ``1`` and ``1.0`` are one class, and text is a number
where every label of the column is spelled as one, because a CSV file knows nothing but text.
Service and worker read labels with the same class.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from fimlora_jobs.datasets.columns import ColumnError, TaskName

MAX_CLASSES = 10_000
MAX_LABEL_CHARS = 1_000
UNLABELLED = -1  # what `datasets` gives a row of a hidden test split
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,18})(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
LARGEST_LABEL = 2**64
LARGEST_WHOLE = 2**53  # beyond, a float does not tell neighbours apart

ProblemType = Literal["single_label_classification", "regression"]
Label = str | int | float


@dataclass(frozen=True)
class Labels:
    """How label values become targets.

    Attributes:
        problem_type: Transformers' word for the loss.
        classes: Class of each id, in order; for regression empty.
        has_unlabelled: Whether -1 stands for a row without a label.
    """

    problem_type: ProblemType
    classes: tuple[Label, ...] = ()
    has_unlabelled: bool = False

    @property
    def n_outputs(self) -> int:
        """Outputs of the head."""
        return len(self.classes) or 1

    def target(self, value: Label) -> int | float | None:
        """The id of a class, or the number itself; ``None`` for a row without a label."""
        if not self.classes:
            return float(_number(value))
        key = value if isinstance(self.classes[0], str) else _number(value)
        if self.has_unlabelled and key == UNLABELLED:
            return None
        return self._ids[key]

    @cached_property
    def _ids(self) -> dict[Label, int]:
        return {label: number for number, label in enumerate(self.classes)}


@dataclass(slots=True)
class LabelSurvey:
    """Watch the labels of a column go by, then say what they are together.

    Attributes:
        column: Name of the column.
        declared: Names of the classes, where the dataset declares them: labels are ids then.
        task: What was asked for; ``auto`` leaves it to the labels.
    """

    column: str
    declared: Sequence[str] | None = None
    task: TaskName = "auto"
    _seen: set[Label] = field(default_factory=set)
    _first: tuple[str, Label] | None = None
    _fraction: str = ""
    _is_numeric: bool = True

    def see(self, value: Any, *, where: str) -> None:
        """Check one label.

        Raises:
            ColumnError: It is none, or of another kind than the first; names the row.
        """
        if not isinstance(value, str | int | float):
            held = "nothing" if value is None else type(value).__name__
            raise self._refuse(
                where, f"must be a label (text, integer or number), it holds {held}"
            )
        if isinstance(value, str) and not 0 < len(value) <= MAX_LABEL_CHARS:
            raise self._refuse(
                where,
                f"holds text of {len(value)} characters; a label has 1 to {MAX_LABEL_CHARS}",
            )
        if self._first is None:
            self._first = (where, value)
        elif isinstance(value, str) is not isinstance(self._first[1], str):
            place, first = self._first
            raise self._refuse(
                where, f"mixes text and numbers: it holds {value!r}, in {place} {first!r}"
            )
        self._note(value, where=where)

    def _note(self, value: Label, *, where: str) -> None:
        if isinstance(value, str):
            self._is_numeric = self._is_numeric and is_number(value)
        if self._is_numeric:
            number = _number(value)
            if not abs(number) < LARGEST_LABEL:  # nor NaN
                raise self._refuse(where, f"holds {str(number)[:40]}, which is no label")
            if isinstance(number, float) and not self._fraction:
                self._fraction = f"{where} holds {number}"
            self._check_declared(number, where)
        if len(self._seen) <= MAX_CLASSES:
            # Text is kept as it is: a later label may show that it is no number.
            self._seen.add(value if isinstance(value, str) else _number(value))

    def _check_declared(self, number: int | float, where: str) -> None:
        n = len(self.declared or ())
        if n and not (isinstance(number, int) and UNLABELLED <= number < n):
            raise self._refuse(
                where, f"holds {number}, but the dataset declares classes 0 to {n - 1}"
            )

    def _refuse(self, where: str, what: str) -> ColumnError:
        return ColumnError(f"{where}: column {self.column!r} {what}")

    def close(self, *, is_all: bool = True) -> Labels | None:
        """What the labels are together.

        Args:
            is_all: Whether all rows were seen; of some rows only, some things are not known.

        Returns:
            How they become targets; ``None`` where more rows may tell.

        Raises:
            ColumnError: They make no task, or not the one that was asked for.
        """
        if self.task == "regression" and not self._is_numeric:
            raise ColumnError(
                f"task regression needs numbers; column {self.column!r} holds text such as "
                f"{self._example()!r}"
            )
        if self.task == "sequence_classification" and self._is_numeric and self._fraction:
            raise ColumnError(
                f"task sequence_classification needs classes; in column {self.column!r} "
                f"{self._fraction}: set task regression, or auto"
            )
        if self.task == "regression" and self.declared and UNLABELLED in self._seen:
            raise ColumnError(
                f"task regression needs an amount in every row; column {self.column!r} declares "
                "classes, and holds -1 where there is none"
            )
        if not is_all:
            return None
        if self.task == "regression" or (self._is_numeric and self._fraction):
            return Labels("regression")
        return self._classes()

    def _classes(self) -> Labels:
        if self.declared and self._is_numeric:
            if self._seen <= {UNLABELLED, str(UNLABELLED)}:
                raise ColumnError(f"column {self.column!r} labels no row: it holds -1 only")
            ids = tuple(range(len(self.declared)))
            return Labels("single_label_classification", ids, has_unlabelled=True)
        if self.declared and self._seen <= set(self.declared):
            return Labels("single_label_classification", tuple(self.declared))
        if len(self._seen) > MAX_CLASSES:
            raise ColumnError(
                f"column {self.column!r} holds more than {MAX_CLASSES} different labels; set task "
                "regression if they are amounts"
            )
        values = {_number(v) for v in self._seen} if self._is_numeric else self._seen
        classes = tuple(sorted(values))  # all text or all numbers
        if classes == (UNLABELLED, 0, 1):
            raise ColumnError(
                f"column {self.column!r} holds -1, 0 and 1: three classes, or two and rows "
                "without a label? Spell the classes as words, or leave these rows out"
            )
        if len(classes) < 2:
            raise ColumnError(
                f"column {self.column!r} holds the one label {classes[0]!r}; a classification "
                "needs two"
            )
        if leaves_rows_unlabelled(classes):
            return Labels("single_label_classification", classes[1:], has_unlabelled=True)
        return Labels("single_label_classification", classes)

    def _example(self) -> str:
        return next((v for v in map(str, self._seen) if not is_number(v)), "")[:40]


def leaves_rows_unlabelled(classes: Sequence[Label]) -> bool:
    """Whether -1 beside other classes means that a row has none.

    Undeclared classes are numbered from 0 wherever `datasets` wrote them, and so they are
    here: -1 is no class beside 0, 1, 2 and so on, but one of two in {-1, 1} or {-1, 0}. What
    {-1, 0, 1} means is not known.
    """
    return len(classes) > 3 and list(classes[:3]) == [UNLABELLED, 0, 1]


def is_number(text: str) -> bool:
    """Whether text is spelled as a number, as JSON spells one."""
    return NUMBER.fullmatch(text) is not None and math.isfinite(float(text))


def _number(value: Label) -> int | float:
    """A label as a number, whole where it is."""
    if isinstance(value, int):
        return int(value)  # not True
    if isinstance(value, str) and value.removeprefix("-").isdecimal():
        return int(value)  # through a float it would lose digits
    number = float(value)
    is_whole = number.is_integer() and abs(number) <= LARGEST_WHOLE
    return int(number) if is_whole else number
