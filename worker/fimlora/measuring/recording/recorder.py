"""Turn what the hooks see into the quantities of a calibration run.

Symbols as in `fimlora.measuring.recording.quantity`.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fimlora.errors import UnsupportedModule
from fimlora.measuring.recording.addends import Allowance
from fimlora.measuring.recording.energies import gram_blocks
from fimlora.measuring.recording.expert_slices import ExpertSlices
from fimlora.measuring.recording.groups import copied, part_of, prefixed
from fimlora.measuring.recording.quantity import Pass, Quantity, SeenCall
from fimlora.model.experts.routed import Routed, Slots, mixes_examples
from fimlora.model.hooks import Call
from fimlora.numerics.last_input import LastInput
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import HALVES, NULL, Groups


class Recorder:
    """Shows every module's inputs and output gradients to the quantities that are collected.

    One example's gradient must be told from another's. Where a module's input does not have
    the examples as its first axis (position embeddings shared by all, tokens of all examples
    in one axis), only a batch of one example can do that. It shows after the forward pass, as
    does what a quantity has to `Quantity.learn`: `adapt` then asks for the pass to be run again.

    Sums add up, so two more things are had of them without most quantities knowing: the *null*,
    quantities of the same kinds that are shown a second backward pass over what the first
    ones keep of a forward pass; and *halves*, as what every other batch gives is kept apart.

    Args:
        modules: The target modules.
        quantities: What is collected, of fused experts of each expert's matrix.
        null: Those of them that have a null once more, if there is a second backward pass.
        halves: Whether the sums of every other batch are kept apart.

    Attributes:
        one_at_a_time: Whether examples must be run one at a time.
        batch_sizes: Examples of each batch so far.
    """

    def __init__(
        self,
        modules: Sequence[TargetModule],
        quantities: Sequence[Quantity],
        *,
        null: Sequence[Quantity] = (),
        halves: bool = False,
    ) -> None:
        self.one_at_a_time = False
        self.batch_sizes: list[int] = []
        self._slices = ExpertSlices(modules)
        self._names = [module.name for module in self._slices.slices]
        layers = (module.block for module in modules if module.block is not None)
        self._reach = frozenset([*self._names, *layers])
        self._quantities, self._null, self._halves = quantities, null, halves
        self._is_null = False
        self._n_in_batch = 0
        self._n_before = 0
        self._n = 0
        self._is_forward = False  # or else a pass that is run again, or another's
        self._mixed: set[str] = set()  # inputs of this pass that mix the examples
        # Where in what is kept of a module's input each quantity's part begins and ends: calls of
        # one module in one pass are kept alike.
        self._parts: dict[str, list[tuple[int, int]]] = {}
        self._swapped: set[str] = set()  # matrices of experts of which A reads the gradient
        self._last_gram = LastInput[list[Tensor]]()
        self._begin_batch()

    def begin(
        self,
        weights: Tensor,
        token_mask: Tensor | None = None,
        *,
        is_whole: bool,
        numbers: Tensor | None = None,
        label_mask: Tensor | None = None,
    ) -> None:
        """Expect a forward pass over some examples of a batch.

        Args:
            weights: What each of them counts in the loss of the whole batch.
            token_mask: Which of their tokens are not padding, if that is known.
            is_whole: Whether they are all examples of the batch.
            numbers: Which examples of the run they are, where a quantity asks.
            label_mask: Which of their tokens carry a label, where each has one of its own.
        """
        self.discard()
        self._n = len(weights)
        self._is_forward = True
        self._is_null = False
        at_hand = Pass(weights, token_mask, is_whole, numbers, label_mask)
        for quantity in self._all:
            quantity.begin(at_hand)

    def begin_null(self) -> None:
        """Expect a second backward pass, from losses under null labels."""
        self._is_null = True

    def drop_null(self) -> None:
        """Expect no second backward pass at all."""
        self._null = ()

    def discard(self) -> None:
        """Forget a pass that was not committed: the sums are as before it began."""
        self._last_gram.forget()
        self._mixed.clear()
        for quantity in self._all:
            quantity.discard()

    def commit(self) -> None:
        """Add what a finished pass has given to the sums."""
        for quantity in self._all:
            quantity.commit()
        self._n_in_batch += self._n

    def keep(self, name: str, x: Tensor | Routed) -> tuple[Tensor, ...]:
        """Reduce a module's input to what its gradient will be combined with.

        Args:
            name: The module's name, or that of an expert's matrix.
            x: Its input.

        Returns:
            What each quantity keeps of it, one after the other; of an expert's tokens first where
            they stand, and where their gradient takes their place they themselves.
        """
        if mixes_examples(x, self._n):
            self._mixed.add(name)
            return ()
        if isinstance(x, Routed):
            return self._keep_routed(name, x)
        return self._kept_of(name, x, self._by_example(x))

    def _keep_routed(self, name: str, given: Routed) -> tuple[Tensor, ...]:
        if self._is_forward:
            for quantity in self._quantities:
                quantity.see_routed(name, given.rows)
        slots = Slots.of(given, self._n)
        tokens = slots.spread(given.x)
        if given.is_swapped:
            self._swapped.add(name)
            return (slots.at, slots.shape, tokens)
        return (slots.at, slots.shape, *self._kept_of(name, given.x, tokens))

    def _kept_of(self, name: str, x: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        gram = partial(self._shared_gram, x, tokens)
        kept = [quantity.keep(name, tokens, gram) for quantity in self._quantities]
        self._parts[name] = [*pairwise(accumulate(map(len, kept), initial=0))]
        return tuple(tensor for part in kept for tensor in part)

    @property
    def names(self) -> frozenset[str]:
        """Names of the target modules, and of the layers they are in."""
        return self._reach

    @property
    def sees_layers(self) -> bool:
        """Whether a quantity looks at the hidden states around layers."""
        return any(quantity.sees_layers for quantity in self._quantities)

    def take_layers(self, other: "Recorder") -> None:
        """Go on from what a recorder of the same modules' layers alone has seen.

        Args:
            other: That recorder.
        """
        mine = (quantity for quantity in self._quantities if quantity.sees_layers)
        for quantity, seen in zip(mine, other._quantities, strict=True):  # noqa: SLF001
            quantity.restore(seen.state())
            quantity.recall(seen.learned())

    def see_layer(self, block: str, x: Tensor, y: Tensor, *, is_last: bool) -> None:
        """Show the hidden states around a layer to the quantities, in the forward pass alone.

        Args:
            block: The layer's name.
            x: Its input.
            y: Its output.
            is_last: Whether the last token stands for an example, and not the first.
        """
        if self._is_forward:
            for quantity in self._quantities:
                quantity.see_layer(block, x, y, is_last=is_last)

    def adapt(self, calls: Mapping[str, int]) -> bool:
        """See whether the forward pass kept what the backward pass will need.

        Args:
            calls: How often each module ran in it.

        Returns:
            Whether the pass must be run again, differently.

        Raises:
            UnsupportedModule: It was run differently already, to no avail.
        """
        self._last_gram.forget()
        self._is_forward = False
        learned = [quantity.learn(calls) for quantity in self._all]
        if self._mixed and self.one_at_a_time:
            raise UnsupportedModule(f"the input of {min(self._mixed)!r} has no example axis")
        self.one_at_a_time |= bool(self._mixed)
        return bool(self._mixed) or any(learned)

    def on_gradients(self, name: str, calls: Sequence[Call]) -> None:
        """Take the gradients of a module, from all its calls in one pass.

        They count once the pass is over and `commit` says so.

        Args:
            name: The module's name.
            calls: What `keep` returned, and the output gradient, of each call.
        """
        if name in self._slices.names:
            calls, gradients = self._calls_of_expert(name, calls)
        else:
            gradients = [self._by_example(g) for _, g in calls]
        for quantity, (start, end) in self._shown(name):
            seen = zip(calls, gradients, strict=True)
            quantity.add(name, [SeenCall(kept[start:end], g) for (kept, _), g in seen])

    def _calls_of_expert(
        self, name: str, calls: Sequence[Call]
    ) -> tuple[list[Call], list[Tensor]]:
        """Give each example its part of an expert's tokens; A and B may stand the other way."""
        seen: list[Call] = []
        gradients = []
        for (at, shape, *kept), g in calls:
            spread = Slots(at, shape).spread(g)
            if name in self._swapped:
                (x,) = kept
                seen.append((self._kept_of(name, g, spread), g))
                gradients.append(x)
            else:
                seen.append((tuple(kept), g))
                gradients.append(spread)
        self._last_gram.forget()
        return seen, gradients

    def on_input(self, name: str, kept: tuple[Tensor, ...]) -> None:
        """Take a module's input in a pass that goes forward only.

        Args:
            name: The module's name.
            kept: What `keep` returned.
        """
        if name in self._mixed:
            return  # the pass will be run again
        if name in self._slices.names:
            kept = kept[2:]
        for quantity, (start, end) in self._shown(name):
            quantity.add(name, [SeenCall(kept[start:end], torch.empty(0))])

    def _shown(self, name: str) -> Iterator[tuple[Quantity, tuple[int, int]]]:
        """The quantities whose turn it is, and where their parts of what is kept are."""
        both = zip(self._quantities, self._parts[name], strict=True)
        if not self._is_null:
            yield from both
            return
        others = iter(self._null)
        for quantity, part in both:
            if quantity.has_null:
                yield next(others), part

    def end_batch(self, order: Tensor | None = None) -> Tensor:
        """Close a batch.

        Args:
            order: Where each example of the batch has gone, if they were run in another order.

        Returns:
            One number per module, in order, that is finite iff all its sums are.
        """
        checks = [torch.zeros(()) for _ in self._names]
        for quantity in self._all:
            found = quantity.end_batch(order)
            for i, name in enumerate(self._names):
                if name in found:
                    checks[i] = checks[i].to(found[name].device) + found[name]
        self.batch_sizes.append(self._n_in_batch)
        self._begin_batch()
        device = checks[0].device
        return self._slices.sum_checks(torch.stack([check.to(device) for check in checks]))

    def pass_over(self, n_batches: int) -> None:
        """Leave batches with examples to other shards of the run.

        Args:
            n_batches: How many come before the next one.
        """
        self._n_before += n_batches
        self._begin_batch()

    def _begin_batch(self) -> None:
        """Keep the next batch apart, if it is to be."""
        self._n_in_batch = 0
        if self._halves:
            is_second = bool((self._n_before + len(self.batch_sizes)) % 2)
            for quantity in self._of_parts:
                quantity.keep_apart(is_second=is_second)

    def groups(self, n_examples: int, modules: Mapping[str, nn.Module]) -> Groups:
        """Give what `fimlora.Statistics` holds of all that was collected.

        With halves this is the end: their sums take the place of the run's.

        Args:
            n_examples: Examples that were seen.
            modules: The target modules by name, with their weights.

        Returns:
            Arrays by the name of the statistics' field and of the module; those of the null
            and of the halves by a name with a part before it.
        """
        for quantity in self._all:
            quantity.see_modules(modules)
        found = _results(self._quantities, n_examples)
        if self._null:
            found |= prefixed(NULL, _results(self._null, n_examples))
        if self._halves and len(self.batch_sizes) > 1:
            found = copied(found)  # arrays may share the memory of the sums
            found |= self._groups_of_halves(n_examples)
        return self._slices.fold(found)

    def _groups_of_halves(self, n_examples: int) -> Groups:
        is_second = np.repeat(np.arange(len(self.batch_sizes)) % 2 == 1, self.batch_sizes)
        n_second = int(is_second.sum())
        for quantity in self._of_parts:
            quantity.show_half(is_second=False)
        first = copied(_results(self._of_parts, n_examples - n_second))
        for quantity in self._of_parts:
            quantity.show_half(is_second=True)
        second = _results(self._of_parts, n_second)
        for quantity in self._of_parts:
            first |= quantity.results_of_part(~is_second)
            second |= quantity.results_of_part(is_second)
        return prefixed(HALVES[0], part_of(first, ~is_second)) | prefixed(
            HALVES[1], part_of(second, is_second)
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give what another recorder needs to go on from here, between two batches.

        Returns:
            The run's sums, not copied, by kind and module; and what was learned of the model.
        """
        sums: dict[str, Tensor] = {}
        learned: dict[str, Any] = {
            "one_at_a_time": self.one_at_a_time,
            "batch_sizes": [*self.batch_sizes],
        }
        for quantity in self._quantities:
            sums |= quantity.state()
            learned |= quantity.learned()
        for quantity in self._null:
            sums |= {f"{NULL}{key}": tensor for key, tensor in quantity.state().items()}
        return sums, learned

    def restore(self, sums: Mapping[str, Tensor], learned: Mapping[str, Any]) -> None:
        """Go on from what another recorder's `state` gave.

        Args:
            sums: Its sums, which nobody else writes to.
            learned: What it had learned.
        """
        self.one_at_a_time = learned["one_at_a_time"]
        self.batch_sizes = [*learned["batch_sizes"]]
        of_null = {k.removeprefix(NULL): t for k, t in sums.items() if k.startswith(NULL)}
        for quantity in self._quantities:
            quantity.restore(sums)
            quantity.recall(learned)
        for quantity in self._null:
            quantity.restore(of_null)
            quantity.recall(learned)
        self._begin_batch()

    def keep_addends(self, allowance: Allowance) -> None:
        """Keep from now on what the sums are made of, so that shards add up in the same order.

        Args:
            allowance: Memory for it.
        """
        for quantity in self._all:
            quantity.keep_addends(allowance)

    def extend(self, sums: Mapping[str, Tensor], learned: Sequence[Mapping[str, Any]]) -> None:
        """Add what recorders of the same run over later batches gave as their `state`.

        Args:
            sums: Their sums.
            learned: What each of them had learned; all had the same batches.
        """
        self.batch_sizes += learned[0]["batch_sizes"]
        of_null = {k.removeprefix(NULL): t for k, t in sums.items() if k.startswith(NULL)}
        for quantity in self._quantities:
            quantity.extend(sums)
        for quantity in self._null:
            quantity.extend(of_null)
        for each in learned:
            self.one_at_a_time |= each["one_at_a_time"]
            for quantity in self._all:
                quantity.learn_more(each)

    @property
    def _all(self) -> list[Quantity]:
        return [*self._quantities, *self._null]

    @property
    def _of_parts(self) -> list[Quantity]:
        return [quantity for quantity in self._quantities if quantity.of_parts]

    def _by_example(self, tensor: Tensor) -> Tensor:
        """View as N examples x T tokens x features; a 2-D tensor has one token each."""
        return tensor.reshape(self._n, -1, tensor.shape[-1])

    def _shared_gram(self, x: Tensor, tokens: Tensor) -> list[Tensor]:
        """Gram matrix of an input, computed once for modules called in turn on the same one."""
        return self._last_gram.get(x, lambda: gram_blocks(tokens))


def _results(quantities: Sequence[Quantity], n_examples: int) -> Groups:
    found: Groups = {"row_energies": {}, "example_energies": {}, "squared_gradients": {}}
    for quantity in quantities:
        found |= quantity.results(n_examples)
    return found
