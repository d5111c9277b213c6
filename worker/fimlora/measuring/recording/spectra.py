"""The leading singular values of every module's mean gradient."""

import numpy as np

from fimlora.measuring.recording.derived import Derived
from fimlora.measuring.recording.mean_gradient import MeanGradient
from fimlora.measuring.recording.quantity import as_array
from fimlora.statistics.statistics import Groups


class Spectra(Derived):
    """Spectra of the gradients of a run.

    Args:
        gradients: Their sums.
    """

    def __init__(self, gradients: MeanGradient) -> None:
        self._gradients = gradients

    def results(self, n_examples: int) -> Groups:
        """Give the spectrum of each mean gradient, its energy and the error of the spectrum."""
        spectra = {name: g.spectrum(n_examples) for name, g in self._gradients.reached()}
        return {
            "spectra": {name: as_array(s.values).reshape(-1) for name, s in spectra.items()},
            "mean_energies": {name: np.array([s.energy]) for name, s in spectra.items()},
            "spectrum_errors": {name: np.array([s.error]) for name, s in spectra.items()},
        }
