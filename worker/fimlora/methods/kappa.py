"""Condition numbers of the weights, as in KappaTune: an order of the modules without any data.

KappaTune, as PEFT has it (`peft.helpers.find_kappa_target_modules`), selects: of all linear maps it
adapts the share with the lowest ``kappa = sigma_max / (sigma_min + 1e-8)`` at one rank, and leaves
the others alone. Here the same number orders the target modules under the rule of every other
score, in proportion to ``1 / kappa``: for any k, the k modules that KappaTune would select are the
k of highest score. Where it stops, r_min and r_max decide, and the budget is met exactly. That the
score is ``1 / kappa``, and not another falling function of it, is ours; KappaTune has none.

A singular weight scores near nothing, and one that is zero throughout nothing at all, where
KappaTune's formula would call it the best. The weights alone decide, so neither data nor labels
can move such a plan.
"""

from fimlora.scores import Scores
from fimlora.statistics import Statistics

# PEFT's own: absolute, so that a weight in other units has another condition number.
EPSILON = 1e-8


def score_condition(
    statistics: Statistics,
    aggregation: str,  # noqa: ARG001 - there is one number per module
    estimator: str | None,  # noqa: ARG001
) -> Scores:
    """Score every target module by how well its weight is conditioned.

    Args:
        statistics: What `fimlora.measure` returned.
        aggregation: Not looked at.
        estimator: Not looked at.

    Returns:
        The scores, ``1 / kappa``; the provenance has every condition number, ``None`` for a
        weight that is zero.
    """
    ends = statistics.quantities["weight_condition"]
    by_module, numbers = {}, {}
    for module in statistics.modules:
        largest, smallest = ends[module.name].tolist()
        by_module[module.name] = (smallest + EPSILON) / largest if largest else 0.0
        numbers[module.name] = largest / (smallest + EPSILON) if largest else None
    return Scores(
        statistics.modules,
        by_module,
        base_parameters=statistics.base_parameters,
        provenance={"condition_numbers": numbers},
    )
