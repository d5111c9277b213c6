"""The leading directions of every module's mean gradient, which initial weights are made of.

They are read from the sums that `fimlora.measuring.recording.mean_gradient` keeps; of the null
and the halves nobody needs them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from fimlora.measuring.recording.mean_gradient import MeanGradient
from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import (
    GramOf,
    Quantity,
    SeenCall,
    as_short_array,
)
from fimlora.statistics.statistics import Groups


class GradientFactors(Quantity):
    """Singular vectors and values of the mean over the examples.

    Args:
        sums: The gradients, summed by another quantity of the same run.
    """

    of_parts = False

    def __init__(self, sums: MeanGradient) -> None:
        self._sums = sums

    def keep(self, name: str, x: Tensor, gram: GramOf) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Keep nothing: the sums see the inputs."""
        return ()

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Add nothing."""

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Give no sums of its own."""
        return iter(())

    def results(self, n_examples: int) -> Groups:
        """Give left vectors (O K), values (K), right ones (K I) and the error (1)."""
        names = ("gradient_left", "gradient_values", "gradient_right", "gradient_errors")
        found: Groups = {name: {} for name in names}
        for module, gradient in self._sums.gradients().items():
            triplets = gradient.triplets(n_examples)
            found["gradient_left"][module] = as_short_array(triplets.left)
            found["gradient_values"][module] = as_short_array(triplets.values)
            found["gradient_right"][module] = as_short_array(triplets.right)
            found["gradient_errors"][module] = np.array([triplets.error])
        return found
