"""Whether a history could have come from a single copy that does one thing at a time.

The search of Wing and Gong with Lowe's memory of places already tried: each operation has to be
put at one moment between its call and its answer, so that the model, asked in that order, gives
the same answers. Histories are short, one job or one key each, so it is cheap.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from support.chaos.histories import Operation


class Model(Protocol):
    """The single copy."""

    initial: Hashable

    def step(self, state: Hashable, operation: Operation) -> Hashable | None:
        """The state after an operation, ``None`` where it could not have been answered so."""
        ...

    def only_reads(self, operation: Operation) -> bool:
        """Whether an operation leaves every state as it is."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the search found.

    Attributes:
        order: The operations in an order that explains them; the longest one if none does.
        stuck: What cannot follow in any order; empty if the history is explained.
    """

    order: tuple[Operation, ...]
    stuck: tuple[Operation, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the history is linearizable."""
        return not self.stuck


def check(operations: Sequence[Operation], model: Model) -> Verdict:
    """Look for an order; one exists if and only if the verdict holds."""
    ordered = sorted(operations, key=lambda op: (op.called, op.returned))
    required = sum(1 << i for i, op in enumerate(ordered) if op.sure)
    seen: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, Hashable, tuple[int, ...]]] = [(0, model.initial, ())]
    longest: tuple[int, tuple[int, ...]] = (0, ())
    while stack:
        done, state, order = _read_ahead(ordered, model, *stack.pop())
        if done & required == required:
            return Verdict(tuple(ordered[i] for i in order))
        if (done, state) in seen:
            continue
        seen.add((done, state))
        longest = max(longest, (done, order), key=lambda found: len(found[1]))
        for i in reversed(_next(ordered, done)):
            after = model.step(state, ordered[i])
            # What may not have happened, and would change nothing, need not have.
            if after is not None and (ordered[i].sure or after != state):
                stack.append((done | 1 << i, after, (*order, i)))
    done, order = longest
    stuck = tuple(ordered[i] for i in _next(ordered, done) if ordered[i].sure)
    return Verdict(tuple(ordered[i] for i in order), stuck)


def _read_ahead(
    ordered: Sequence[Operation],
    model: Model,
    done: int,
    state: Hashable,
    order: tuple[int, ...],
) -> tuple[int, Hashable, tuple[int, ...]]:
    """Place reads that fit: one that changes nothing is nowhere better than as early as can be."""
    placed = True
    while placed:
        placed = False
        for i in _next(ordered, done):
            if model.only_reads(ordered[i]) and model.step(state, ordered[i]) == state:
                done, order, placed = done | 1 << i, (*order, i), True
    return done, state, order


def _next(ordered: Sequence[Operation], done: int) -> list[int]:
    """What may come next: called before everything that is left had been answered."""
    left = [i for i in range(len(ordered)) if not done >> i & 1]
    first_answer = min((ordered[i].returned for i in left), default=math.inf)
    return [i for i in left if ordered[i].called <= first_answer]
