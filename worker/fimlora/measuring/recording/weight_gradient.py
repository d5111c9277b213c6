"""How much the loss would change if weights were set to zero, to first order: mean |W * G|.

Symbols: W a module's weight and G its mean gradient over all examples (both O I); their
product is taken entry by entry.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from fimlora.measuring.recording.derived import Derived
from fimlora.measuring.recording.mean_gradient import ExactSum, MeanGradient
from fimlora.model.plain_weight import plain_weight
from fimlora.statistics.statistics import Groups


class WeightGradient(Derived):
    """The mean over a module's entries of ``|W * G|``.

    The absolute value is taken once, of the whole run's gradient, so that one must be kept.

    Args:
        gradients: The sums of the gradients, none of them sketched.
    """

    def __init__(self, gradients: MeanGradient) -> None:
        self._gradients = gradients
        self._modules: Mapping[str, nn.Module] = {}

    def see_modules(self, modules: Mapping[str, nn.Module]) -> None:
        """Take the modules, whose weights are looked at with the gradients."""
        self._modules = modules

    def results(self, n_examples: int) -> Groups:
        """Give the mean (1) per module."""
        found = {}
        for name, gradient in self._gradients.reached():
            assert isinstance(gradient, ExactSum), "a gradient was sketched"
            with plain_weight(self._modules[name]) as W:
                products = torch.mul(gradient.total(), W.to(gradient.total().device)).abs_()
            total = products.sum(dtype=torch.float64).item()
            found[name] = np.array([total / (n_examples * products.numel())])
        return {"weight_gradient": found}
