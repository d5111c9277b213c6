"""The leading directions of every module's mean gradient, which initial weights are made of."""

import numpy as np

from fimlora.measuring.recording.derived import Derived
from fimlora.measuring.recording.mean_gradient import MeanGradient
from fimlora.measuring.recording.quantity import as_short_array
from fimlora.statistics.statistics import Groups


class GradientFactors(Derived):
    """Singular vectors and values of the mean over the examples; none of the null and the halves.

    Args:
        gradients: The sums of the gradients.
    """

    of_parts = False

    def __init__(self, gradients: MeanGradient) -> None:
        self._gradients = gradients

    def results(self, n_examples: int) -> Groups:
        """Give left vectors (O K), values (K), right ones (K I) and the error (1)."""
        names = ("gradient_left", "gradient_values", "gradient_right", "gradient_errors")
        found: Groups = {name: {} for name in names}
        for module, gradient in self._gradients.reached():
            triplets = gradient.triplets(n_examples)
            found["gradient_left"][module] = as_short_array(triplets.left)
            found["gradient_values"][module] = as_short_array(triplets.values)
            found["gradient_right"][module] = as_short_array(triplets.right)
            found["gradient_errors"][module] = np.array([triplets.error])
        return found
