"""What clients did and saw: operations with the time of their call and of their answer.

A history is all that was done to one thing, a job or an idempotency key, by anybody.
"""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

LOST = "lost"  # no answer came: it may have happened, at any time after the call, or never


@dataclass(frozen=True, slots=True)
class Operation:
    """One call and its answer.

    Attributes:
        thing: The job or key that it is about.
        kind: What was called.
        called: When, in seconds of a monotonic clock.
        returned: When its answer came.
        answer: What was answered.
        by: Who called.
        sure: Whether it has happened; one whose answer was lost may not have.
    """

    thing: str
    kind: str
    called: float
    returned: float
    answer: tuple[Any, ...] = ()
    by: str = ""
    sure: bool = True

    @property
    def is_lost(self) -> bool:
        """Whether no answer came."""
        return self.answer == (LOST,)


def lost(thing: str, kind: str, called: float, *, by: str = "") -> Operation:
    """An operation whose answer never came."""
    return Operation(thing, kind, called, math.inf, (LOST,), by, sure=False)


def unseen(thing: str, kind: str, answer: tuple[Any, ...], *, by: str = "") -> Operation:
    """An operation that has happened, nobody knows when."""
    return Operation(thing, kind, -math.inf, math.inf, answer, by)


class Histories:
    """Collects operations from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._operations: list[Operation] = []

    def add(self, *operations: Operation) -> None:
        """Put operations on record."""
        with self._lock:
            self._operations += operations

    def by_thing(self) -> dict[str, list[Operation]]:
        """One history per job or key."""
        with self._lock:
            return group(self._operations)


def group(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Operations by what they are about."""
    found: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        found[operation.thing].append(operation)
    return dict(found)


def as_rows(operations: Iterable[Operation], *, since: float) -> list[dict[str, Any]]:
    """Operations as JSON, with times from a moment on, the first call first."""
    moved = (
        replace(op, called=op.called - since, returned=op.returned - since) for op in operations
    )
    return [_finite(asdict(op)) for op in sorted(moved, key=lambda op: op.called)]


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    times = {k: row[k] if math.isfinite(row[k]) else None for k in ("called", "returned")}
    return row | times


def now() -> float:
    """Seconds of the clock that all operations are timed by."""
    return time.monotonic()
