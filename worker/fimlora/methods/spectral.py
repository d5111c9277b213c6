"""Singular values of the mean gradient: what the rule ``spectral`` shares by (experimental)."""

from fimlora.scores import Scores
from fimlora.statistics import Statistics


def take_spectra(statistics: Statistics) -> Scores:
    """Take the recorded spectra in place of scores.

    Args:
        statistics: What `fimlora.measure` returned.

    Returns:
        Scores without a number per module; their spectra are empty if none were recorded.
    """
    return Scores(
        statistics.modules,
        spectra=dict(statistics.spectra),
        base_parameters=statistics.base_parameters,
    )
