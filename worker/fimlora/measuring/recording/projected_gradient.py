"""The summed gradient of every module in the rows of the A that is drawn for it.

Symbols: N examples, O and I output and input features, K rows of A, ``G[n]`` (O I) the weight
gradient of example n, ``z = A x^T`` an input projected by A. The leading rows of A are those that
an adapter of any rank is drawn with, so the leading columns of ``sum_n G[n] A^T`` are that
adapter's.
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
    as_short_array,
)
from fimlora.numerics.seeded_draws import draw_lora_a
from fimlora.plan import TargetModule
from fimlora.statistics.groups import N_DIRECTIONS
from fimlora.statistics.statistics import Groups


class ProjectedGradient(Quantity):
    """``sum_n G[n] A^T``; of an input only z is kept, K numbers per token.

    Args:
        modules: The target modules.
        seed: Seed of A.
        device: Where the modules compute.
    """

    of_parts = False

    def __init__(
        self, modules: Sequence[TargetModule], *, seed: int, device: torch.device
    ) -> None:
        self._lora_a = {
            m.name: draw_lora_a(m, rank=N_DIRECTIONS, seed=seed).to(device) for m in modules
        }
        self._sums = {m.name: PendingSum() for m in modules}  # (K O)

    def keep(self, name: str, x: Tensor, gram: GramOf) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Keep z."""
        return (project(self._lora_a[name].to(x.device), x),)

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Add the gradients of the calls, each example counting the same."""
        for (z,), g in calls:
            self._sums[name].stage(lora_b_gradient(z, g, g.new_ones(len(g))))

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Give the sums."""
        for name, pending in self._sums.items():
            yield f"projected/{name}", pending

    def results(self, n_examples: int) -> Groups:  # noqa: ARG002 - sums, not means
        """Give the sums (O K) per module."""
        reached = {n: s.total for n, s in self._sums.items() if s.total is not None}
        return {"gradient_projected": {n: as_short_array(t.T) for n, t in reached.items()}}
