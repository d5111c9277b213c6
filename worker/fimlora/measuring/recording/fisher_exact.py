"""The per-example Fisher information of LoRA-B, with the random A integrated out.

Symbols as in `fimlora.measuring.recording.energies`; K is the Gram matrix of an input's tokens.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from fimlora.measuring.recording.arithmetic import gram_is_cheaper
from fimlora.measuring.recording.energies import (
    gram_blocks,
    row_energies_by_gram,
    row_energies_directly,
)
from fimlora.measuring.recording.fisher_per_example import FisherPerExample, joined
from fimlora.measuring.recording.quantity import GramOf, SeenCall
from fimlora.plan import TargetModule


class FisherExact(FisherPerExample):
    """Row energies as they are, from the tokens' inner products.

    Where K is cheaper than the gradients themselves, K is kept of an input, not the input. A
    module that runs twice in a pass needs its inputs, as the gradients of all calls add up
    before they are squared.

    Args:
        modules: The target modules.
    """

    def __init__(self, modules: Sequence[TargetModule]) -> None:
        super().__init__(modules)
        self._repeated: set[str] = set()

    def keep(self, name: str, x: Tensor, gram: GramOf) -> tuple[Tensor, ...]:
        """Keep K, or the input where that is cheaper."""
        return tuple(gram()) if self._by_gram(name, x) else (x,)

    def learn(self, calls: Mapping[str, int]) -> bool:
        """Find modules that ran more than once."""
        repeated = {name for name, n in calls.items() if n > 1}
        is_new = not repeated <= self._repeated
        self._repeated |= repeated
        return is_new

    def row_energies(self, name: str, calls: Sequence[SeenCall]) -> Tensor:
        """Square the gradients of each example over all calls."""
        kept, g = (
            [*chain(*(call.kept for call in calls))],
            joined([call.g for call in calls], dim=1),
        )
        if self._by_gram(name, g):
            return row_energies_by_gram(kept, g)
        return self._row_energies_of_input(name, joined(kept, dim=1), g)

    def learned(self) -> dict[str, Any]:
        """Name the modules that run more than once."""
        return {"repeated": sorted(self._repeated)}

    def recall(self, learned: Mapping[str, Any]) -> None:
        """Take their names."""
        self._repeated = set(learned["repeated"])

    def learn_more(self, learned: Mapping[str, Any]) -> None:
        """Add names of such modules."""
        self._repeated |= set(learned["repeated"])

    def _by_gram(self, name: str, tokens: Tensor) -> bool:
        module = self._modules[name]
        if name in self._repeated:
            return False
        return gram_is_cheaper(tokens.shape[1], module.d_in, module.d_out)

    def _row_energies_of_input(self, name: str, x: Tensor, g: Tensor) -> Tensor:
        module = self._modules[name]
        if gram_is_cheaper(x.shape[1], module.d_in, module.d_out):
            return row_energies_by_gram(gram_blocks(x), g)
        return row_energies_directly(x, g)
