"""Fisher information over that of the null: how much more than under labels of other examples.

``fim`` scores mostly what the model does to any gradient; under labels that mean nothing it has
nearly the same scores. Their ratio takes that away, and with it the size of the gradients: a
module is put first for being touched by the labels, however little its Fisher information is.
A ratio of two small numbers says nothing, so the null counts at least a fixed fraction of its
median over the modules, which keeps the scores free of any unit.
"""

from statistics import median

from fimlora.methods.fim import score_fisher
from fimlora.scores import Scores
from fimlora.statistics import Statistics

FLOOR = 0.1  # of the median


def score_over_null(
    statistics: Statistics, aggregation: str = "mean", estimator: str | None = None
) -> Scores:
    """Score every target module by its Fisher information over that of the null.

    Args:
        statistics: What `fimlora.measure` returned, with a null.
        aggregation: As for `fimlora.score`.
        estimator: As for `fimlora.score`.

    Returns:
        The scores, which have no unit; where the null is zero everywhere, those of ``fim``.
    """
    assert statistics.null is not None, "refused before: there is no null"
    run = score_fisher(statistics, aggregation, estimator)
    null = score_fisher(statistics.null, aggregation, estimator).by_module
    floor = FLOOR * median(null.values()) if null else 0.0
    if not floor:
        floor = max(null.values(), default=0.0) or 1.0
    return Scores(
        run.modules,
        {name: value / max(null[name], floor) for name, value in run.by_module.items()},
        base_parameters=run.base_parameters,
        provenance=run.provenance,
    )
