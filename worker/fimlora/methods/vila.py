"""Fisher information of one dataset over that of another: what to change over what to keep.

After VILA (Kim et al. 2025), which looks for where to make a model forget: a module is put first
that matters for the rows at hand and little for those whose function is to be kept. A ratio of two
small numbers says nothing, so a fixed fraction of the median is added below the line. It moves with
the scores, where the published constant of 1e-5 weighs more the smaller the gradients are; so
neither the unit of a loss nor the LoRA scale changes a plan.

What is compared is the second moment of each example's gradient, as in ``fim``. The published code
takes the variance, of gradients of batch means; that is the second moment less the energy of the
mean gradient, a part that shrinks with the number of examples where these disagree.
"""

from collections.abc import Mapping
from statistics import median

from fimlora.errors import InvalidOption
from fimlora.methods.fim import score_fisher
from fimlora.methods.fim_adapter import ADAPTER_GROUP
from fimlora.scores import Scores
from fimlora.statistics import Statistics

FRACTION = 0.1  # of the median


def score_contrast(
    statistics: Statistics, aggregation: str = "mean", estimator: str | None = None
) -> Scores:
    """Score every target module by its Fisher information over that of the rows to retain.

    Args:
        statistics: What `fimlora.measure` returned, with rows to retain.
        aggregation: As for `fimlora.score`.
        estimator: As for `fimlora.score`.

    Returns:
        The scores, which have no unit; where the rows to retain reach no module, those of
        ``fim``. The provenance has both maps, by module.

    Raises:
        InvalidOption: One dataset was measured at a trained adapter, and the other was not.
    """
    assert statistics.retain is not None, "refused before: there is nothing to retain"
    trained = [bool(s.quantities.get(ADAPTER_GROUP)) for s in (statistics, statistics.retain)]
    if estimator is None and trained[0] != trained[1]:
        raise InvalidOption(
            "only one of the two datasets was measured at a trained adapter, so that their scores "
            "are of other parameters; measure both alike, or give estimator"
        )
    run = score_fisher(statistics, aggregation, estimator)
    retain = score_fisher(statistics.retain, aggregation, estimator).by_module
    below = denominators(retain)
    maps = {"target": dict(run.by_module), "retain": dict(retain), "fraction": FRACTION}
    return Scores(
        run.modules,
        {name: value / below[name] for name, value in run.by_module.items()},
        base_parameters=run.base_parameters,
        provenance={**run.provenance, "contrast": maps},
    )


def denominators(retain: Mapping[str, float]) -> dict[str, float]:
    """Say what scores are divided by.

    Args:
        retain: Score of the rows to retain, per module name.

    Returns:
        That and the fraction of the median, or of the largest where the median is zero; ones
        where all are.
    """
    added = FRACTION * (median(retain.values()) if retain else 0.0)
    added = added or FRACTION * max(retain.values(), default=0.0) or 1.0
    return {name: value + added for name, value in retain.items()}
