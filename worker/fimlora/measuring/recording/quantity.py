"""One thing that is summed while measuring, and what it is told of a pass.

Symbols: N examples of the pass, T tokens of each, I and O a module's input and output features;
``x`` (N T I) its input, ``g`` (N T O) the gradient of the summed per-example losses at its output.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fimlora.measuring.recording.addends import (
    APART,
    FLAGS,
    PARTS,
    Addends,
    Allowance,
    in_turn,
)
from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.statistics.statistics import Groups

GramOf = Callable[[], list[Tensor]]
"""Gives the Gram matrix of an input, made once for all modules that are called on it."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over some examples of a batch: forward, and backward where gradients are seen.

    Attributes:
        weights: What each example counts in the loss of the whole batch (N).
        token_mask: Which of their tokens are not padding, if that is known.
        is_whole: Whether they are all examples of the batch.
        numbers: Which examples of the run they are (N), counted over all batches as they were
            given; on the CPU. ``None`` where no quantity asks.
        label_mask: Which of their tokens carry a label, where each has one of its own.
    """

    weights: Tensor
    token_mask: Tensor | None
    is_whole: bool
    numbers: Tensor | None = None
    label_mask: Tensor | None = None


class SeenCall(NamedTuple):
    """One call of a module, after the backward pass if there is one.

    Attributes:
        kept: What `Quantity.keep` returned for it.
        g: The gradient of its output (N T O); empty in a run that goes forward only.
    """

    kept: tuple[Tensor, ...]
    g: Tensor


class Quantity(ABC):
    """Sums over a run, for all its target modules.

    A pass may fail half-way, so what it gives is pending until `commit`. Whoever adds a quantity
    says what to keep of an input, what to add for a module's calls, and what its sums are named.

    Attributes:
        reads_labels: Whether labels can change it: if not, it has no null.
        of_parts: Whether it is recorded of the null and of the halves, too.
        sees_layers: Whether it looks at the hidden states around layers.
        at_hand: The pass at hand.
    """

    reads_labels: ClassVar[bool] = True
    sees_layers: ClassVar[bool] = False
    at_hand: Pass
    of_parts: bool = True

    @property
    def has_null(self) -> bool:
        """Whether it is recorded of the null."""
        return self.reads_labels and self.of_parts

    def begin(self, at_hand: Pass) -> None:
        """Expect a forward pass."""
        self.at_hand = at_hand

    def keep(self, name: str, x: Tensor, gram: GramOf) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Say what a module's input must be remembered by until its gradient comes.

        Args:
            name: The module's name.
            x: Its input (N T I).
            gram: Gives the input's Gram matrix, as `fimlora.measuring.recording.energies` has it.

        Returns:
            Tensors; here the input itself.
        """
        return (x,)

    def learn(self, calls: Mapping[str, int]) -> bool:  # noqa: ARG002
        """Look at how often each module ran in the forward pass.

        Returns:
            Whether the pass must be run again, as `keep` will now keep something else.
        """
        return False

    @abstractmethod
    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Take a module's part in a pass: all its calls in it.

        A run that goes forward only has no reason to wait, and gives one call after the other.
        """

    def see_layer(self, block: str, x: Tensor, y: Tensor, *, is_last: bool) -> None:  # noqa: B027
        """Look at the hidden states of a layer in the forward pass; most look at none.

        Args:
            block: The layer's name, as `fimlora.plan.TargetModule.block` has it.
            x: Its input.
            y: Its output.
            is_last: Whether the last token stands for an example, and not the first.
        """

    def see_routed(self, name: str, rows: Tensor) -> None:  # noqa: B027
        """Look at which tokens an expert is given, in the forward pass alone; most do not care.

        Args:
            name: The name of the expert's matrix.
            rows: Where they stand among all tokens of all examples (S).
        """

    def end_batch(self, order: Tensor | None) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Close a batch.

        Args:
            order: Where each example has gone, if they were run in another order.

        Returns:
            For every module with sums of its own for the batch, one number that is finite iff
            they are.
        """
        return {}

    @abstractmethod
    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Name every sum over the run, as ``kind/module``; the kinds are this quantity's own."""

    def batch_sums(self) -> Iterator[PendingSum]:
        """Give the sums over the batch at hand."""
        return iter(())

    def pending_sums(self) -> Iterator[PendingSum]:
        """Give every sum that a pass adds to."""
        return chain((pending for _, pending in self.run_sums()), self.batch_sums())

    @cached_property
    def _pending(self) -> tuple[PendingSum, ...]:
        return tuple(self.pending_sums())  # once: their names are not asked for pass by pass

    def discard(self) -> None:
        """Forget what a pass that was not committed has added."""
        for pending in self._pending:
            pending.discard()

    def commit(self) -> None:
        """Add what a finished pass has given."""
        for pending in self._pending:
            pending.commit()

    def keep_apart(self, *, is_second: bool) -> None:
        """Expect a batch of the first or of the second half, as they are to be told apart."""
        for _, pending in self.run_sums():
            pending.keeps_apart = is_second

    def show_half(self, *, is_second: bool) -> None:
        """Let `results` be those of a half from now on: of the first one, then of the second.

        Sums of the first half become what is left without the second, then those of the second.
        """
        for _, pending in self.run_sums():
            if pending.total is None:
                continue
            if is_second:
                none = torch.zeros_like(pending.total)
                pending.total = none if pending.apart is None else pending.apart
            elif pending.apart is not None:
                pending.total -= pending.apart

    def state(self) -> dict[str, Tensor]:
        """Give the sums that `restore` goes on from, not copied, between two batches."""
        sums = {key: pending.total for key, pending in self.run_sums()}
        sums |= {f"{APART}{key}": pending.apart for key, pending in self.run_sums()}
        for key, pending in self.run_sums():
            if pending.addends is not None and (kept := pending.addends.stacked()):
                sums[f"{PARTS}{key}"], sums[f"{FLAGS}{key}"] = kept
        return {key: found for key, found in sums.items() if found is not None}

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Go on from another run's `state`; sums of other quantities may be among them."""
        for key, pending in self.run_sums():
            pending.total, pending.apart = sums.get(key), sums.get(f"{APART}{key}")
            if pending.addends is None or pending.total is None:
                continue
            if f"{PARTS}{key}" in sums:
                parts, flags = sums[f"{PARTS}{key}"], sums[f"{FLAGS}{key}"]
                pending.addends.restore([*in_turn(parts, flags)])
            else:
                pending.addends.give_up()

    def keep_addends(self, allowance: Allowance) -> None:
        """Keep from now on what each sum is made of, as far as memory is allowed for it."""
        for _, pending in self.run_sums():
            pending.addends = Addends(allowance)

    def extend(self, sums: Mapping[str, Tensor]) -> None:
        """Add the `state` of a run over later batches; sums of other quantities may be among them.

        Where what they are made of is kept, they are added up as one run over all would have.
        """
        for key, pending in self.run_sums():
            if f"{PARTS}{key}" in sums:
                pending.extend_by_parts(sums[f"{PARTS}{key}"], sums[f"{FLAGS}{key}"])
            else:
                pending.extend(sums.get(key), sums.get(f"{APART}{key}"))

    def learned(self) -> dict[str, Any]:
        """Give what was learned of the model, as plain data."""
        return {}

    def recall(self, learned: Mapping[str, Any]) -> None:  # noqa: B027 - most learn nothing
        """Take what another run has learned of the model."""

    def learn_more(self, learned: Mapping[str, Any]) -> None:  # noqa: B027 - most learn nothing
        """Add what a run over later batches has learned of the model."""

    def see_modules(self, modules: Mapping[str, nn.Module]) -> None:  # noqa: B027 - most need none
        """Look at the modules once all batches are through, while their weights are at hand.

        Args:
            modules: The target modules by name, as `fimlora.model.targets.locate` finds them.
        """

    @abstractmethod
    def results(self, n_examples: int) -> Groups:
        """Give what `fimlora.Statistics` holds of it.

        Args:
            n_examples: Examples that were seen.

        Returns:
            Arrays by the name of the statistics' field and of the module.
        """

    def results_of_part(self, is_part: NDArray[np.bool_]) -> Groups:  # noqa: ARG002
        """Give what is no sum over examples, and has to be made anew of some of them.

        Args:
            is_part: Which examples of the run they are.

        Returns:
            Arrays as `results` gives; here none.
        """
        return {}


def present(tensor: Tensor | None) -> Tensor:
    """Expect a sum that every finished run has."""
    assert tensor is not None, "the module got no gradient"
    return tensor


def as_array(tensor: Tensor | None) -> NDArray[np.float64]:
    """Give a sum as statistics hold it."""
    return present(tensor).to(torch.float64).cpu().numpy()


def as_short_array(tensor: Tensor | None) -> NDArray[np.float32]:
    """Give a matrix that no score is made from as statistics hold it: in float32."""
    return present(tensor).to(torch.float32).contiguous().cpu().numpy()
