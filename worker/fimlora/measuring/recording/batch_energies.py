"""Row energies of the gradient of a batch, the squared mini-batch gradient without its random A.

Symbols: N examples, T tokens of each, I and O input and output features, R rank; ``x``
(N T I) module input, ``g`` (N T O) gradient of the summed per-example losses at its output,
``w`` (N) what each example counts in the loss of the batch. ``G = sum_n w[n] g[n]^T x[n]``
(O I) is the gradient of that loss with respect to the weight. A LoRA-A of R rows with
independent entries of variance v turns it into ``D = G A^T`` (O R), and in expectation
``D[o, k]^2 = v ||G[o, :]||^2``: what ``sampled`` estimates from one draw.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import Quantity, SeenCall, as_array
from fimlora.numerics.products import widen
from fimlora.plan import TargetModule
from fimlora.shapes import Float
from fimlora.statistics.statistics import Groups


class BatchEnergies(Quantity):
    """The sum over batches of ``||G[o, :]||^2`` for every module.

    A batch that is run in several passes is summed before it is squared, which needs the
    whole gradient; of a batch in one pass only the O numbers are kept.

    Args:
        modules: The target modules.
    """

    def __init__(self, modules: Sequence[TargetModule]) -> None:
        names = [module.name for module in modules]
        self._totals = {name: PendingSum() for name in names}  # (O), of the run
        self._gradients = {name: PendingSum() for name in names}  # (O I), of a batch in parts
        self._rows = {name: PendingSum() for name in names}  # (O), of a batch in one pass

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Add the gradients of the calls, each example weighted as in the batch's loss."""
        weights, is_whole = self.at_hand.weights, self.at_hand.is_whole
        gradient = PendingSum() if is_whole else self._gradients[name]
        for (x,), g in calls:
            weighted = widen(g) * weights.to(g.device)[:, None, None]
            gradient.stage_product(weighted.flatten(0, 1).mT, widen(x).flatten(0, 1))
        if is_whole:
            gradient.commit()
            rows = _row_energies(gradient)
            assert rows is not None
            self._rows[name].stage(rows)

    def end_batch(self, order: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG002
        """Add the batch at hand to the total."""
        checks = {}
        for name, total in self._totals.items():
            rows = self._rows[name].take()
            if rows is None:
                rows = _row_energies(self._gradients[name])
            if rows is None:
                continue
            checks[name] = rows.sum()
            total.stage(rows)
            total.commit()
        return checks

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Give the totals."""
        for name, total in self._totals.items():
            yield f"batch energies/{name}", total

    def batch_sums(self) -> Iterator[PendingSum]:
        """Give what the batch at hand has added up to."""
        yield from self._gradients.values()
        yield from self._rows.values()

    def results(self, n_examples: int) -> Groups:  # noqa: ARG002 - sums, not means
        """Give the totals (O) per module."""
        totals = ((name, t.total) for name, t in self._totals.items())
        return {"batch_energies": {name: as_array(t) for name, t in totals if t is not None}}


def _row_energies(gradient: PendingSum) -> Float[Tensor, " O"] | None:
    """Square a gradient, which is let go of; ``None`` where there is none."""
    G = gradient.take()
    return None if G is None else G.square_().sum(dim=1, dtype=torch.float64)
