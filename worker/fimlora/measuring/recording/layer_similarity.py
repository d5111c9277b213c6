"""How alike a layer's input and output are, as hidden states of one token of each example.

The token is the last one that is not padding where later tokens see earlier ones, and else the
first, as `fimlora.model.end_token` tells. Hidden states are kept in host memory, as
float32, until all batches are through: two vectors per example and layer, of so many examples
at most that the comparison, which grows with their square, stays a small part of a run.

Symbols: N examples, T tokens of each, D features of a hidden state.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import GramOf, Quantity, SeenCall
from fimlora.numerics.kernel_alignment import FEWEST, linear_alignment
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import Groups

GROUP = "layer_similarity"
# The published study takes 128; with more, debiased estimates hardly move.
MOST_EXAMPLES = 1024
_STATES = "states"
_LAST = "similarity_of_last_tokens"


class LayerSimilarity(Quantity):
    """Centered kernel alignment of every layer's input and output.

    Each target module has that of the layer it is in. A layer that runs more than once in a pass,
    or whose input and output are not hidden states of the same tokens, has none.

    Args:
        modules: The target modules.
        most_examples: Of how many examples hidden states are kept: the first ones.
    """

    reads_labels: ClassVar[bool] = False
    sees_layers: ClassVar[bool] = True

    def __init__(
        self, modules: Sequence[TargetModule], *, most_examples: int = MOST_EXAMPLES
    ) -> None:
        self._blocks = {m.name: m.block for m in modules if m.block is not None}
        self._most = most_examples
        self._ran: set[str] = set()  # modules
        self._is_last: dict[str, bool] = {}  # by layer: of which token the states are
        self._unlike: set[str] = set()  # layers without
        self._of_pass: dict[str, Tensor] = {}  # input and output (N 2 D), by layer
        self._of_batch: dict[str, list[Tensor]] = {}
        self._of_run: dict[str, list[Tensor]] = {}

    def keep(self, name: str, x: Tensor, gram: GramOf) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Keep nothing: what a layer gives is seen in the forward pass."""
        return ()

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:  # noqa: ARG002
        """Note that a module is reached, and so has what its layer has."""
        self._ran.add(name)

    def see_layer(self, block: str, x: Tensor, y: Tensor, *, is_last: bool) -> None:
        """Take a layer's input and output in the forward pass.

        Args:
            block: The layer's name.
            x: Its input (N T D).
            y: Its output.
            is_last: Whether the last token stands for an example, and not the first.
        """
        if block not in self._blocks.values():
            return
        n = len(self.at_hand.weights)
        is_seen = block in self._of_pass
        if is_seen or x.dim() != 3 or x.shape != y.shape or x.shape[0] != n:
            self._unlike.add(block)
            return
        mask = self.at_hand.token_mask
        at = token_of(mask, *x.shape[:2], is_last=is_last).to(x.device)
        rows = torch.arange(n, device=x.device)
        both = torch.stack([x[rows, at], y[rows, at]], dim=1)
        self._is_last[block] = is_last
        self._of_pass[block] = both.to("cpu", torch.float32)

    def discard(self) -> None:
        """Forget a pass that was not committed."""
        self._of_pass.clear()

    def commit(self) -> None:
        """Put a finished pass behind those of its batch."""
        for block, both in self._of_pass.items():
            self._of_batch.setdefault(block, []).append(both)
        self._of_pass.clear()

    def end_batch(self, order: Tensor | None) -> Mapping[str, Tensor]:
        """Put the batch's examples behind those before, in the order they were given in."""
        for block, parts in self._of_batch.items():
            states = torch.cat(parts)
            states = states if order is None else states[order.to("cpu")]
            self._put(block, states)
        self._of_batch.clear()
        return {}

    def _put(self, block: str, states: Tensor) -> None:
        """Put examples behind those before, as far as more are kept."""
        before = self._of_run.setdefault(block, [])
        left = self._most - sum(map(len, before))
        before.append(states[: max(0, left)])

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Nothing is summed."""
        return iter(())

    def state(self) -> dict[str, Tensor]:
        """Give the hidden states of all examples so far."""
        self._of_run = {block: [torch.cat(parts)] for block, parts in self._of_run.items()}
        return {f"{_STATES}/{block}": states for block, [states] in self._of_run.items()}

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Go on from hidden states."""
        keys = {block: f"{_STATES}/{block}" for block in set(self._blocks.values())}
        self._of_run = {b: [sums[key].cpu()] for b, key in keys.items() if key in sums}

    def extend(self, sums: Mapping[str, Tensor]) -> None:
        """Put the hidden states of later examples behind those before."""
        for block in dict.fromkeys(self._blocks.values()):
            if (key := f"{_STATES}/{block}") in sums:
                self._put(block, sums[key].cpu())

    def learned(self) -> dict[str, Any]:
        """Name the tokens that stand for the examples, and the modules and layers without any."""
        return {_LAST: [self._is_last, sorted(self._ran), sorted(self._unlike)]}

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Take these."""
        is_last, ran, unlike = learned[_LAST]
        self._is_last, self._ran, self._unlike = dict(is_last), set(ran), set(unlike)

    def learn_more(self, learned: Mapping[str, Any]) -> None:
        """Add to these."""
        is_last, ran, unlike = learned[_LAST]
        self._is_last |= is_last
        self._ran |= set(ran)
        self._unlike |= set(unlike)

    def results(self, n_examples: int) -> Groups:  # noqa: ARG002 - it counts what it keeps
        """Give per module what its layer has.

        Returns:
            The debiased and the biased similarity, the number of examples, and 1 where these
            are compared at their last token, 0 where at the first (4).
        """
        return self._results(None)

    def results_of_part(self, is_part: NDArray[np.bool_]) -> Groups:
        """Give the same of some examples alone.

        Args:
            is_part: Which examples of the run they are.

        Returns:
            As `results`.
        """
        return self._results(is_part)

    def _results(self, is_part: NDArray[np.bool_] | None) -> Groups:
        found: dict[str, NDArray[np.float64]] = {}
        for block, parts in self._of_run.items():
            states = torch.cat(parts).to(torch.float64).numpy()
            if is_part is not None:
                states = states[is_part[: len(states)]]
            if block not in self._unlike and len(states) >= FEWEST:
                alike = linear_alignment(states[:, 0], states[:, 1])
                facts = [len(states), float(self._is_last[block])]
                found[block] = np.array([*alike, *facts])
        of_modules = {
            name: found[block]
            for name, block in self._blocks.items()
            if block in found and name in self._ran
        }
        return {GROUP: of_modules}


def token_of(mask: Tensor | None, n: int, n_tokens: int, *, is_last: bool) -> Tensor:
    """Find the token that stands for each example, whichever side its padding is on.

    Args:
        mask: Which tokens are not padding (N T), if that is known.
        n: Examples.
        n_tokens: Tokens of each.
        is_last: Whether it is the last one that is not padding, or the first.

    Returns:
        Its place in each example (N). Of an example without any token, an end of it.
    """
    if mask is None or mask.shape != (n, n_tokens):
        return torch.full((n,), n_tokens - 1 if is_last else 0)
    is_token = (mask != 0).to(torch.int64)
    if is_last:
        return n_tokens - 1 - is_token.flip(1).argmax(dim=1)
    return is_token.argmax(dim=1)
