"""The spectra of every module's mean gradient, whitened by the second moments of its input."""

import numpy as np

from fimlora.measuring.recording.derived import Derived
from fimlora.measuring.recording.input_moments import InputMoments
from fimlora.measuring.recording.mean_gradient import ExactSum, MeanGradient
from fimlora.measuring.recording.quantity import as_array
from fimlora.measuring.recording.whitening import (
    WhitenedSpectrum,
    whitened_exactly,
    whitened_from_sketch,
    whitening_factors,
)
from fimlora.statistics.statistics import Groups


class WhitenedSpectra(Derived):
    """Whitened spectra of the gradients of a run.

    Args:
        gradients: Their sums.
        moments: Those of the inputs' squares.
    """

    def __init__(self, gradients: MeanGradient, moments: InputMoments) -> None:
        self._gradients, self._moments = gradients, moments

    def results(self, n_examples: int) -> Groups:
        """Give values, the energy between its bounds, and the error of the leading values."""
        found: dict[str, WhitenedSpectrum] = {}
        for name, gradient in self._gradients.reached():
            d = whitening_factors(self._moments.mean_squares(name))
            if isinstance(gradient, ExactSum):
                found[name] = whitened_exactly(gradient.total() / n_examples, d)
            else:
                found[name] = whitened_from_sketch(gradient.sketch(n_examples), d)
        return {
            "whitened_spectra": {n: as_array(s.values).reshape(-1) for n, s in found.items()},
            "whitened_energies": {n: np.array(s.energies) for n, s in found.items()},
            "whitened_errors": {n: np.array([s.error]) for n, s in found.items()},
        }
