"""Turn what the hooks see into the sums of a calibration run.

Symbols as in `fimlora.measuring.recording.energies`: ``x`` module input, ``g`` output gradient, ``K`` Gram
matrix of an example's tokens, ``z`` input seen through the sampled A.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fimlora.errors import UnsupportedModule
from fimlora.measuring.recording.energies import (
    gram_blocks,
    gram_is_cheaper,
    is_same_memory,
    lora_b_gradient,
    row_energies_by_gram,
    row_energies_directly,
    see_through,
)
from fimlora.measuring.recording.pending_sum import StagedSum
from fimlora.measuring.recording.recorded_sums import RecordedSums
from fimlora.model.hooks import Call
from fimlora.numerics.seeded_draws import draw_probe
from fimlora.plan import TargetModule
from fimlora.statistics.options import Estimator
from fimlora.statistics.statistics import Groups


class Recorder:
    """Keeps what a module's input must be remembered by, and adds up what comes of it.

    One example's gradient must be told from another's. Where a module's input does not have
    the examples as its first axis (position embeddings shared by all, tokens of all examples
    in one axis), only a batch of one example can do that; where a module runs twice in a
    pass, its inputs themselves are needed. Both show after the forward pass: `adapt` then
    asks for it to be run again, and remembers.

    Attributes:
        one_at_a_time: Whether examples must be run one at a time.
    """

    def __init__(
        self,
        modules: Iterable[TargetModule],
        *,
        estimator: Estimator,
        rank: int,
        seed: int,
        device: torch.device,
        recorded: RecordedSums | None = None,
    ) -> None:
        self.one_at_a_time = False
        self._modules = {module.name: module for module in modules}
        self._exact, self._sampled = estimator.has_exact, estimator.has_sampled
        self._probes = {
            module.name: draw_probe(module, rank=rank, seed=seed).to(device)
            for module in self._modules.values()
            if self._sampled
        }
        self._sums = recorded
        self._repeated: set[str] = set()
        self._mixed: set[str] = set()  # inputs of this pass that mix the examples
        self._n = 0
        self._weights = torch.empty(0)
        self._last_gram: tuple[Tensor, int, list[Tensor]] | None = None
        # Sums of the batch at hand, over its micro-batches.
        self._gradients: dict[str, StagedSum] = defaultdict(StagedSum)
        self._energies: dict[str, list[Tensor]] = defaultdict(list)
        self._staged_energies: dict[str, Tensor] = {}
        # Sums of the run.
        self._rows: dict[str, StagedSum] = defaultdict(StagedSum)
        self._examples: dict[str, list[Tensor]] = defaultdict(list)
        self._squares: dict[str, Tensor] = {}

    def begin(
        self, weights: Tensor, token_mask: Tensor | None = None, *, is_whole: bool
    ) -> None:
        """Expect a forward pass over some examples of a batch.

        Args:
            weights: What each of them counts in the loss of the whole batch.
            token_mask: Which of their tokens are not padding, if that is known.
            is_whole: Whether they are all examples of the batch.
        """
        self.discard()
        self._n, self._weights = len(weights), weights
        if self._sums is not None:
            self._sums.begin(weights, token_mask, is_whole=is_whole)

    def discard(self) -> None:
        """Forget a pass that was not committed: the sums are as before it began."""
        self._last_gram = None
        self._mixed.clear()
        self._staged_energies.clear()
        for staged in chain(self._gradients.values(), self._rows.values()):
            staged.discard()
        if self._sums is not None:
            self._sums.discard()

    def commit(self) -> None:
        """Add what a finished pass has given to the sums."""
        for name, energies in self._staged_energies.items():
            self._energies[name].append(energies)
        self._staged_energies.clear()
        for staged in chain(self._gradients.values(), self._rows.values()):
            staged.commit()
        if self._sums is not None:
            self._sums.commit()

    def keep(self, name: str, x: Tensor) -> tuple[Tensor, ...]:
        """Reduce a module's input to what its gradient will be combined with.

        Args:
            name: The module's name.
            x: Its input.

        Returns:
            The blocks of a Gram matrix or the input itself if exact, then the input if
            gradients are summed, then z if sampled.
        """
        if self._n > 1 and x.shape[0] != self._n:
            self._mixed.add(name)
            return ()
        tokens = self._by_example(x)
        kept: list[Tensor] = []
        if self._exact and self._by_gram(name, tokens):
            kept.extend(self._shared_gram(x, tokens))
        elif self._exact:
            kept.append(tokens)
        if self._sums is not None:
            kept.append(tokens)
        if self._sampled:
            kept.append(see_through(self._probes[name].to(tokens.device), tokens))
        return tuple(kept)

    def adapt(self, calls: dict[str, int]) -> bool:
        """See whether the forward pass kept what the backward pass will need.

        Args:
            calls: How often each module ran in it.

        Returns:
            Whether the pass must be run again, differently.

        Raises:
            UnsupportedModule: It was run differently already, to no avail.
        """
        self._last_gram = None  # the forward pass is over; let go of its last input
        repeated = {name for name, n in calls.items() if self._exact and n > 1}
        again = bool(self._mixed) or not repeated <= self._repeated
        if self._mixed and self.one_at_a_time:
            raise UnsupportedModule(f"the input of {min(self._mixed)!r} has no example axis")
        self.one_at_a_time |= bool(self._mixed)
        self._repeated |= repeated
        return again

    def on_gradients(self, name: str, calls: list[Call]) -> None:
        """Take the gradients of a module, from all its calls in one pass.

        They count once the pass is over and `commit` says so.

        Args:
            name: The module's name.
            calls: What `keep` returned, and the output gradient, of each call.
        """
        gradients = [self._by_example(g) for _, g in calls]
        n_after = self._sampled + (self._sums is not None)  # what follows the part for exact
        if self._sums is not None:
            inputs = [kept[len(kept) - n_after] for kept, _ in calls]
            self._sums.add(name, [*zip(inputs, gradients, strict=True)])
        if self._exact:
            parts = [kept[: len(kept) - n_after] for kept, _ in calls]
            self._add_energies(name, [*chain(*parts)], _joined(gradients))
        if self._sampled:
            weights = self._weights.to(gradients[0].device)
            for (kept, _), g in zip(calls, gradients, strict=True):
                self._gradients[name].stage(lora_b_gradient(kept[-1], g, weights))

    def end_batch(self, order: Tensor | None = None) -> Tensor:
        """Close a batch: square its gradients and add them to the run's sums.

        Args:
            order: Where each example of the batch has gone, if they were run in another order.

        Returns:
            One number per module, in order, that is finite iff all its sums are.
        """
        checks = []
        recorded = self._sums.end_batch() if self._sums is not None else {}
        for name in self._modules:
            total = recorded.get(name, torch.zeros(()))
            if self._exact:
                energies = torch.cat(self._energies.pop(name))
                energies = energies if order is None else energies[order.to(energies.device)]
                self._examples[name].append(energies)
                total = total.to(energies.device) + energies.sum()
            if self._sampled:
                gradient = self._gradients[name].take()
                assert gradient is not None, "the module got no gradient"
                square = gradient.square_()
                self._squares[name] = _plus(self._squares.get(name), square.double())
                total = total.to(square.device) + square.sum()
            checks.append(total)
        device = checks[0].device
        return torch.stack([check.to(device) for check in checks])

    def groups(self, n_examples: int) -> Groups:
        """Give what `fimlora.Statistics` holds of all that was recorded.

        Args:
            n_examples: Examples that were seen.

        Returns:
            Arrays by the name of the statistics' field and of the module.
        """
        return {
            "row_energies": self.row_energies(),
            "example_energies": self.example_energies(),
            "squared_gradients": self.squared_gradients(),
            **(self._sums.results(n_examples) if self._sums is not None else {}),
        }

    def row_energies(self) -> dict[str, NDArray[np.float64]]:
        """Give the sums over all examples, (O) per module; empty unless exact."""
        return {name: _array(self._rows[name].total) for name in self._modules if self._exact}

    def example_energies(self) -> dict[str, NDArray[np.float64]]:
        """Give the energy of every example, (N) per module; empty unless exact."""
        return {
            name: _array(torch.cat(self._examples[name]))
            for name in self._modules
            if self._exact
        }

    def squared_gradients(self) -> dict[str, NDArray[np.float64]]:
        """Give the sums over all batches, (O R) per module; empty unless sampled."""
        return {name: _array(self._squares[name].T) for name in self._modules if self._sampled}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Give what another recorder needs to go on from here, between two batches.

        Returns:
            The run's sums, not copied, by kind and module; and what was learned of the model.
        """
        for name, energies in self._examples.items():
            self._examples[name] = [torch.cat(energies)]
        sums = {f"rows/{name}": _present(rows.total) for name, rows in self._rows.items()}
        sums |= {f"examples/{name}": values for name, [values] in self._examples.items()}
        sums |= {f"squares/{name}": square for name, square in self._squares.items()}
        if self._sums is not None:
            sums |= self._sums.state()
        repeated = sorted(self._repeated)
        return sums, {"one_at_a_time": self.one_at_a_time, "repeated": repeated}

    def restore(self, sums: Mapping[str, Tensor], learned: Mapping[str, Any]) -> None:
        """Go on from what another recorder's `state` gave.

        Args:
            sums: Its sums, which nobody else writes to.
            learned: What it had learned.
        """
        for key, tensor in sums.items():
            kind, _, name = key.partition("/")
            if kind == "rows":
                self._rows[name].total = tensor
            elif kind == "examples":
                self._examples[name] = [tensor]
            elif kind == "squares":
                self._squares[name] = tensor
        if self._sums is not None:
            self._sums.restore(sums)
        self.one_at_a_time = learned["one_at_a_time"]
        self._repeated = set(learned["repeated"])

    def _by_example(self, tensor: Tensor) -> Tensor:
        """View as N examples x T tokens x features; a 2-D tensor has one token each."""
        return tensor.reshape(self._n, -1, tensor.shape[-1])

    def _by_gram(self, name: str, tokens: Tensor) -> bool:
        module = self._modules[name]
        if name in self._repeated:
            return False
        return gram_is_cheaper(tokens.shape[1], module.d_in, module.d_out)

    def _shared_gram(self, x: Tensor, tokens: Tensor) -> list[Tensor]:
        """Gram matrix of an input, computed once for modules called in turn on the same one."""
        version = x._version  # noqa: SLF001 - how autograd itself tells in-place changes
        last = self._last_gram
        if last is None or last[1] != version or not is_same_memory(last[0], x):
            last = self._last_gram = (x, version, gram_blocks(tokens))
        return last[2]

    def _add_energies(self, name: str, kept: list[Tensor], g: Tensor) -> None:
        if self._by_gram(name, g):
            rows = row_energies_by_gram(kept, g)
        else:
            rows = self._row_energies_of_input(name, _joined(kept), g)
        self._rows[name].stage(rows.sum(dim=0, dtype=torch.float64))
        self._staged_energies[name] = rows.sum(dim=1)

    def _row_energies_of_input(self, name: str, x: Tensor, g: Tensor) -> Tensor:
        module = self._modules[name]
        if gram_is_cheaper(x.shape[1], module.d_in, module.d_out):
            return row_energies_by_gram(gram_blocks(x), g)
        return row_energies_directly(x, g)


def _joined(calls: list[Tensor]) -> Tensor:
    """Tokens of all calls in one axis; nothing is copied when there is one call."""
    return calls[0] if len(calls) == 1 else torch.cat(calls, dim=1)


def _plus(total: Tensor | None, added: Tensor) -> Tensor:
    return added if total is None else total.add_(added)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "the module got no gradient"
    return tensor


def _array(tensor: Tensor | None) -> NDArray[np.float64]:
    return _present(tensor).double().cpu().numpy()
