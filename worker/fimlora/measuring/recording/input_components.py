"""Principal components of what goes into a module: what EVA starts a LoRA-A from.

Symbols: N examples, T tokens of each, I input features, K components. A row is the input of one
token: of those that carry a label where each token has one of its own, else of those that are
not padding; and each of what no mask fits, such as one vector per example.

Components are updated at the end of a batch, and before that whenever a number of rows has come
together. Which rows these are depends on no micro-batch: they come in the order of the examples.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import GramOf, Pass, Quantity, SeenCall
from fimlora.memory.need import COMPONENT_ROWS, N_COMPONENTS
from fimlora.numerics.last_input import LastInput, is_same_memory
from fimlora.numerics.principal_components import Components, joined, with_rows
from fimlora.numerics.products import widen
from fimlora.plan import TargetModule
from fimlora.shapes import Float
from fimlora.statistics.statistics import Groups

# The run, and its halves.
_RUN, _FIRST, _SECOND = "run", "half 1", "half 2"
_TENSORS = ("mean", "total", "values", "vectors", "similarity")
# A module, and which of its calls in a pass.
Key = tuple[str, int]


@dataclass(frozen=True, eq=False, slots=True)
class Gathered:
    """What has come of an input so far; modules with one input have one of these together.

    Attributes:
        components: Of the rows up to the last update.
        waiting: Rows since then.
    """

    components: Components | None = None
    waiting: tuple[Tensor, ...] = ()


@dataclass(slots=True)
class _Last:
    """The last input that was taken, and what became of it."""

    before: Gathered | None
    rows: Tensor
    after: Gathered


class InputComponents(Quantity):
    """The leading principal components of every module's input.

    Args:
        modules: The target modules.
        n_components: K, at most.
        n_rows: Rows to update by at most.
    """

    reads_labels = False

    def __init__(
        self,
        modules: Sequence[TargetModule],
        *,
        n_components: int = N_COMPONENTS,
        n_rows: int = COMPONENT_ROWS,
    ) -> None:
        self._names = [module.name for module in modules]
        self._n_components, self._n_rows = n_components, n_rows
        self._parts: tuple[str, ...] = (_RUN,)
        self._shown = _RUN
        self._held: dict[str, dict[Key, Gathered]] = {_RUN: {}, _FIRST: {}, _SECOND: {}}
        self._staged: dict[str, dict[Key, Gathered]] = {}
        self._last: dict[str, _Last] = {}
        self._n_calls = Counter[str]()
        self._last_input = LastInput[Tensor]()
        self._counted: Tensor | None = None
        self._indices: Tensor | None = None
        self._saved: Mapping[str, Tensor] = {}

    def begin(self, at_hand: Pass) -> None:
        """Expect a pass, and find out which of its tokens count."""
        super().begin(at_hand)
        mask = at_hand.token_mask if at_hand.label_mask is None else at_hand.label_mask
        self._counted = mask
        self._indices = None

    def keep(self, name: str, x: Tensor, gram: GramOf) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Keep the rows that count; what may still be written to is copied."""
        return (self._last_input.get(x, lambda: self._rows_of(x)),)

    def _rows_of(self, x: Float[Tensor, "N T I"]) -> Float[Tensor, "M I"]:
        rows = x.flatten(0, 1)
        if self._counted is None or self._counted.shape != x.shape[:2]:
            return widen(rows.clone())
        if self._indices is None:  # once for all modules: it waits for the device
            self._indices = self._counted.flatten().nonzero()[:, 0]
        return widen(rows.index_select(0, self._indices.to(x.device)))

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Take the rows of the calls; each call of a pass has components of its own."""
        for (rows,), _ in calls:
            key = name, self._n_calls[name]
            self._n_calls[name] += 1
            for part in self._parts:
                self._stage(part, key, rows)

    def _stage(self, part: str, key: Key, rows: Tensor) -> None:
        staged = self._staged.setdefault(part, {})
        before = staged.get(key) or self._held[part].get(key)
        last = self._last.get(part)
        if last is None or last.before is not before or not is_same_memory(last.rows, rows):
            last = self._last[part] = _Last(before, rows, self._with(before, rows))
        staged[key] = last.after

    def _with(self, before: Gathered | None, rows: Tensor) -> Gathered:
        """Take some rows; update once enough have come together."""
        gathered, size = before or Gathered(), self._n_rows
        waiting = (*gathered.waiting, rows)
        if sum(map(len, waiting)) < size:
            return Gathered(gathered.components, waiting)
        components, together = gathered.components, torch.cat(waiting)
        n_whole = len(together) // size * size
        for some in together[:n_whole].split(size):
            components = with_rows(components, some, self._n_components)
        return Gathered(components, (together[n_whole:].clone(),))  # not a view of them all

    def commit(self) -> None:
        """Let what a finished pass has given take the place of what was before."""
        for part, staged in self._staged.items():
            self._held[part] |= staged
        self.discard()

    def discard(self) -> None:
        """Forget what a pass has given that was not committed."""
        self._staged, self._last = {}, {}
        self._n_calls.clear()
        self._last_input.forget()

    def end_batch(self, order: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG002
        """Update by the rows that wait."""
        checks = {}
        for part in self._parts:
            done: dict[int, Gathered] = {}
            held = self._held[part]
            for gathered in held.values():
                if id(gathered) not in done:
                    done[id(gathered)] = self._settled(gathered)
            for key, gathered in [*held.items()]:
                held[key] = done[id(gathered)]
                if part == _RUN and (found := held[key].components) is not None:
                    checks[key[0]] = found.values.sum()
        return checks

    def _settled(self, gathered: Gathered) -> Gathered:
        components = gathered.components
        if any(map(len, gathered.waiting)):
            rows = torch.cat(gathered.waiting)
            components = with_rows(components, rows, self._n_components)
        return Gathered(components)

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Give none: nothing adds up."""
        return iter(())

    def keep_apart(self, *, is_second: bool) -> None:
        """Gather for the run and for a half."""
        self._parts = (_RUN, _SECOND if is_second else _FIRST)

    def show_half(self, *, is_second: bool) -> None:
        """Show what was gathered for a half."""
        self._shown = _SECOND if is_second else _FIRST

    def state(self) -> dict[str, Tensor]:
        """Give the components, each once, between two batches."""
        return {
            f"components/{number}/{name}": getattr(components, name)
            for number, components in enumerate(self._distinct())
            for name in _TENSORS
        }

    def learned(self) -> dict[str, Any]:
        """Give which of them are whose."""
        distinct = self._distinct()
        numbers = {id(components): number for number, components in enumerate(distinct)}
        held = [
            [part, name, call, numbers[id(gathered.components)]]
            for part, by_key in self._held.items()
            for (name, call), gathered in by_key.items()
            if gathered.components is not None
        ]
        counts = [[components.n_rows, components.n_parts] for components in distinct]
        return {"components": {"held": held, "counts": counts}}

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Remember another run's components, until `recall` says whose they are."""
        self._saved = sums

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Go on from the components of another run."""
        of, saved = learned["components"], self._saved
        distinct = [
            Gathered(Components(*counts, *(saved[f"components/{n}/{t}"] for t in _TENSORS)))
            for n, counts in enumerate(of["counts"])
        ]
        for part, name, call, number in of["held"]:
            self._held[part][name, call] = distinct[number]
        self._saved = {}

    def results(self, n_examples: int) -> Groups:  # noqa: ARG002 - shares, not sums
        """Give components (K I), shares of the variance (K), and how they converged (3)."""
        groups: Groups = {
            "input_components": {},
            "input_variances": {},
            "input_convergence": {},
        }
        done: dict[tuple[int, ...], tuple[Any, ...]] = {}
        for name in self._names:
            calls = self._calls_of(name)
            if not calls:
                continue
            same = tuple(map(id, calls))
            if same not in done:
                done[same] = self._arrays(calls)
            for group, array in zip(groups.values(), done[same], strict=True):
                group[name] = array
        return groups

    def _arrays(self, calls: Sequence[Components]) -> tuple[Any, ...]:
        found = calls[0] if len(calls) == 1 else joined(calls, self._n_components)
        told = [float(found.similarity), float(found.n_rows), float(found.n_parts)]
        # Rows differ in no direction that was not found, unless all that are kept were.
        n_directions = min(self._n_components, found.vectors.shape[1])
        shares = found.ratios.new_zeros(n_directions)
        shares[: len(found.ratios)] = found.ratios
        arrays = (found.vectors, shares, torch.tensor(told, dtype=torch.float64))
        return tuple(array.cpu().numpy() for array in arrays)

    def _calls_of(self, name: str) -> list[Components]:
        held = self._held[self._shown]
        found = (held.get((name, call)) for call in range(self._most_calls()))
        return [g.components for g in found if g is not None and g.components is not None]

    def _most_calls(self) -> int:
        return 1 + max((call for _, call in self._held[self._shown]), default=-1)

    def _distinct(self) -> list[Components]:
        found = {
            id(gathered.components): gathered.components
            for by_key in self._held.values()
            for gathered in by_key.values()
            if gathered.components is not None
        }
        return [*found.values()]
