"""Scores beside a plan that goes by none: those of `fim` where they were measured."""

from fimlora.methods.fim import score_fisher
from fimlora.scores import Scores
from fimlora.statistics import Statistics
from fimlora.statistics.options import Estimator


def score_controls(
    statistics: Statistics, aggregation: str = "mean", estimator: str | None = None
) -> Scores:
    """Give what a control's plan shows beside its ranks.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: As for `fimlora.score`.
        estimator: As for `fimlora.score`.

    Returns:
        The scores of `fim`; one and the same for all modules where nothing was estimated.
    """
    if statistics.estimator is not Estimator.NONE:
        return score_fisher(statistics, aggregation, estimator)
    equal = dict.fromkeys((module.name for module in statistics.modules), 1.0)
    return Scores(statistics.modules, equal, base_parameters=statistics.base_parameters)
