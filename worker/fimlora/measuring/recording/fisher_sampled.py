"""The squared mini-batch gradient of LoRA-B under one seeded A, as in the published code.

Symbols: O output features, R rank; ``z`` a module's input projected by A.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fimlora.measuring.recording.energies import lora_b_gradient, project
from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import (
    GramOf,
    Quantity,
    SeenCall,
    as_array,
)
from fimlora.numerics.seeded_draws import draw_lora_a
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import Groups


class FisherSampled(Quantity):
    """The gradient of each batch's loss with respect to B, squared and summed over batches.

    Of an input only z is kept, R numbers per token.

    Args:
        modules: The target modules.
        rank: Rows of A.
        seed: Seed of A.
        device: Where the modules compute.
    """

    def __init__(
        self, modules: Sequence[TargetModule], *, rank: int, seed: int, device: torch.device
    ) -> None:
        self._lora_a = {
            m.name: draw_lora_a(m, rank=rank, seed=seed).to(device) for m in modules
        }
        self._gradients = {m.name: PendingSum() for m in modules}  # (R O), of the batch
        self._squares = {m.name: PendingSum() for m in modules}  # (R O), of the run

    def keep(self, name: str, x: Tensor, gram: GramOf) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Keep z."""
        return (project(self._lora_a[name].to(x.device), x),)

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Add the gradients of the calls, each example weighted as in the batch's loss."""
        weights = self.at_hand.weights.to(calls[0].g.device)
        for (z,), g in calls:
            self._gradients[name].stage(lora_b_gradient(z, g, weights))

    def end_batch(self, order: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG002
        """Square the gradient of the batch."""
        checks = {}
        for name, gradient in self._gradients.items():
            taken = gradient.take()
            if taken is None:
                continue
            square = taken.square_()
            self._squares[name].stage(square.double())
            self._squares[name].commit()
            checks[name] = square.sum()
        return checks

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Give the squares."""
        for name, squares in self._squares.items():
            yield f"squares/{name}", squares

    def batch_sums(self) -> Iterator[PendingSum]:
        """Give the gradients of the batch."""
        return iter(self._gradients.values())

    def results(self, n_examples: int) -> Groups:  # noqa: ARG002 - sums, not means
        """Give the sums over all batches, (O R) per module."""
        squares = {
            name: as_array(s.total.T)
            for name, s in self._squares.items()
            if s.total is not None
        }
        return {"squared_gradients": squares}
