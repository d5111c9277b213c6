"""Singular values of the mean gradient: what the rule ``spectral`` shares by (experimental)."""

from fimlora.scores import Scores
from fimlora.statistics import Statistics


def take_spectra(
    statistics: Statistics,
    aggregation: str,  # noqa: ARG001 - spectra have neither
    estimator: str | None,  # noqa: ARG001
) -> Scores:
    """Take the recorded spectra in place of scores.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: Not looked at.
        estimator: Not looked at.

    Returns:
        Scores without a number per module.
    """
    return Scores(
        statistics.modules,
        spectra=dict(statistics.spectra),
        base_parameters=statistics.base_parameters,
    )
