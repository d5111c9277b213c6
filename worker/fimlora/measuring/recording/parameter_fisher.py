"""The Frobenius norm of a weight's Fisher information, whose entries must be kept for it.

Symbols: N examples of a pass, T tokens of each, I and O input and output features, ``G[n]`` (O I)
the weight gradient of example n. The Fisher information of an entry is the mean of its squares.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import Quantity, SeenCall, present
from fimlora.numerics.products import widen
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import Groups


class ParameterFisher(Quantity):
    """The sum of the squared gradients of every entry of every module's weight.

    Each example's gradient is formed whole before it is squared: with all its tokens and calls.

    Args:
        modules: The target modules.
    """

    def __init__(self, modules: Sequence[TargetModule]) -> None:
        self._squares = {module.name: PendingSum() for module in modules}  # (O I)

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Add the squares of each example's gradient."""
        for n in range(len(self.at_hand.weights)):
            G: Tensor | None = None
            for (x,), g in calls:
                left, right = widen(g[n]).mT, widen(x[n])
                G = left @ right if G is None else G.addmm_(left, right)
            self._squares[name].stage(present(G).square_())

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Give the sums of squares."""
        for name, squares in self._squares.items():
            yield f"parameter fisher/{name}", squares

    def results(self, n_examples: int) -> Groups:
        """Give ``||F||_F`` (1) per module, F the mean of the squares."""
        totals = ((name, pending.total) for name, pending in self._squares.items())
        return {
            "parameter_fisher": {
                name: np.array([_norm(total) / n_examples])
                for name, total in totals
                if total is not None
            }
        }


def _norm(squares: Tensor) -> float:
    return float(torch.linalg.vector_norm(squares, dtype=torch.float64))
