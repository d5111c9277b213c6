"""Spectra above their noise: singular values of the mean gradient, less what noise gives.

Symbols: a module's mean gradient M over N examples (d_out d_in), a and b its longer and shorter
side. Were the noise of M independent and of one variance v in all entries, its largest squared
singular value would lie at ``v (sqrt(a) + sqrt(b))^2``, and in one draw of a hundred above that by
2.02 times ``v (sqrt(a) + sqrt(b)) (1 / sqrt(a) + 1 / sqrt(b))^(1/3)`` (Johnstone, Annals of
Statistics 29, 2001). That edge is taken off each squared value; ``v a b``, the energy of M's noise,
is that of one example over N (`fimlora.methods.coherence`).

The noise of real gradients is not isotropic: it has directions of its own, of which some stand
above this edge. So a value that is left is a lead and no proof of signal, and the method is
experimental, like ``spectral``.
"""

import numpy as np

from fimlora.methods.coherence import part_gradients
from fimlora.plan import TargetModule
from fimlora.scores import Scores
from fimlora.statistics import Statistics

# The Tracy-Widom law of real matrices is below this in 99 of 100 draws.
_HIGH = 2.02


def take_denoised(
    statistics: Statistics,
    aggregation: str,  # noqa: ARG001 - spectra have neither
    estimator: str | None,  # noqa: ARG001
) -> Scores:
    """Take the recorded spectra, less the edge of their noise, in place of scores.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: Not looked at.
        estimator: Not looked at.

    Returns:
        Scores without a number per module. The provenance names the modules of which nothing
        is above the edge; such a one gets no more ranks than it must.
    """
    parts, spectra = part_gradients(statistics), {}
    for module in statistics.modules:
        squares = np.square(statistics.spectra[module.name])
        noise = max(0.0, parts[module.name].noise) / statistics.n_examples
        spectra[module.name] = np.sqrt(np.maximum(0.0, squares - noise_edge(module, noise)))
    return Scores(
        statistics.modules,
        spectra=spectra,
        base_parameters=statistics.base_parameters,
        provenance={"within_noise": [name for name, left in spectra.items() if not left.any()]},
    )


def noise_edge(module: TargetModule, energy: float) -> float:
    """Say how large a squared singular value is that noise alone gives.

    Args:
        module: The module, for its sides.
        energy: Expected energy of the noise of its mean gradient, over all entries.

    Returns:
        The edge; larger values come in one draw of a hundred.
    """
    long, short = np.sqrt([module.d_in, module.d_out])
    sides, spread = long + short, (1 / long + 1 / short) ** (1 / 3)
    return float(energy / (module.d_in * module.d_out) * (sides**2 + _HIGH * sides * spread))
