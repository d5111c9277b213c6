"""Row energies of the gradient of a batch, the squared mini-batch gradient without its random A.

Symbols: N examples, T tokens of each, I and O input and output features, R rank; ``x``
(N T I) module input, ``g`` (N T O) gradient of the summed per-example losses at its output,
``w`` (N) what each example counts in the loss of the batch. ``G = sum_n w[n] g[n]^T x[n]``
(O I) is the gradient of that loss with respect to the weight. A LoRA-A of R rows with
independent entries of variance v turns it into ``D = G A^T`` (O R), and in expectation
``D[o, k]^2 = v ||G[o, :]||^2``: what ``sampled`` estimates from one draw.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fimlora.measuring.recording.pending_sum import StagedSum
from fimlora.numerics.products import widen
from fimlora.shapes import Float

Seen = tuple[Tensor, Tensor]  # x and g of one call


class BatchEnergies:
    """The sum over batches of ``||G[o, :]||^2`` for one module.

    A batch that is run in several passes is summed before it is squared, which needs the
    whole gradient; of a batch in one pass only the O numbers are kept.

    Attributes:
        total: That sum over the batches that have ended (O); ``None`` before the first.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self._gradient = StagedSum()  # (O I), of a batch in several passes
        self._rows = StagedSum()  # (O), of a batch in one

    def add(
        self, calls: Iterable[Seen], weights: Float[Tensor, " N"], *, is_whole: bool
    ) -> None:
        """Take a module's part in a pass.

        Args:
            calls: Input and output gradient of each of its calls.
            weights: What each example of the pass counts in the loss of the batch.
            is_whole: Whether the pass holds all examples of the batch.
        """
        gradient = StagedSum() if is_whole else self._gradient
        for x, g in calls:
            weighted = widen(g) * weights.to(g.device)[:, None, None]
            gradient.stage_product(weighted.flatten(0, 1).mT, widen(x).flatten(0, 1))
        if is_whole:
            gradient.commit()
            self._rows.stage(_row_energies(gradient))

    def sums(self) -> tuple[StagedSum, ...]:
        """Give what is staged until the pass is over.

        Returns:
            The sums of the batch at hand.
        """
        return self._gradient, self._rows

    def end_batch(self) -> Tensor:
        """Add the batch at hand to the total.

        Returns:
            Its energy, which is finite iff all its gradients are.
        """
        rows = self._rows.take()
        if rows is None:
            rows = _row_energies(self._gradient)
        self.total = rows if self.total is None else self.total.add_(rows)
        return rows.sum()


def _row_energies(gradient: StagedSum) -> Float[Tensor, " O"]:
    """Square a gradient, which is let go of."""
    G = gradient.take()
    assert G is not None, "the module got no gradient"
    return G.square_().sum(dim=1, dtype=torch.float64)
