"""GoRA's importance: how much the loss depends on a module's weights, to first order.

A module's importance is the mean over its entries of ``|W * G|``, G its mean gradient over all
examples. GoRA (He et al., arXiv 2502.12171, and its published code) gives *parameters* in
proportion to it, ``r (d_in + d_out)``, not ranks. So the score is the importance over the cost of
one rank, and the rule shares by that in proportion, under the exact budget and bounds of every
other plan. What the source does to meet its budget, rounding and clamping each rank by itself, is
left out: it misses the budget by what it clamps.
"""

from fimlora.scores import Scores
from fimlora.statistics import Statistics


def score_importance(
    statistics: Statistics,
    aggregation: str,  # noqa: ARG001 - there is one number per module
    estimator: str | None,  # noqa: ARG001
) -> Scores:
    """Score every target module by its importance over the cost of one rank.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: Not looked at.
        estimator: Not looked at.

    Returns:
        The scores, to which ranks are proportional where no bound is met.
    """
    importances = statistics.quantities["weight_gradient"]
    return Scores(
        statistics.modules,
        {m.name: importances[m.name].item() / m.cost for m in statistics.modules},
        base_parameters=statistics.base_parameters,
    )
