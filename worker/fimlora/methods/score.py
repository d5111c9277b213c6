"""From statistics to scores, by the method that a rule needs. Nothing here imports torch."""

from fimlora.methods.fim import module_scores
from fimlora.scores import Scores, check_rule
from fimlora.statistics import Statistics


def score(
    statistics: Statistics,
    *,
    rule: str = "proportional",
    scale: int | float | None = None,
    aggregation: str = "mean",
    estimator: str | None = None,
) -> Scores:
    """Take from statistics what plans of a rule need, whatever their budget.

    Args:
        statistics: What `fimlora.measure` returned, or what was read from its file.
        rule: The rule of the plans: ``spectral`` takes the spectra, all others the Fisher
            information of LoRA-B.
        scale: LoRA scale of every module; that of the statistics by default.
        aggregation: How the Fisher information becomes one number: ``mean``, ``max`` or
            ``l2``.
        estimator: ``exact``, ``sampled`` or ``batch``; by default that of the run, and
            ``exact`` if it was both.

    Returns:
        What `fimlora.allocate` takes.

    Raises:
        InvalidOption: The rule or the aggregation is unknown, or the estimator was not
            recorded.
    """  # noqa: DOC502 - the helpers raise
    check_rule(rule)
    if scale is not None:
        statistics = statistics.rescaled(scale)
    facts, size = statistics.provenance(), statistics.base_parameters
    if rule == "spectral":
        return Scores(
            statistics.modules,
            spectra=dict(statistics.spectra),
            base_parameters=size,
            provenance=facts,
        )
    scores = module_scores(statistics, aggregation=aggregation, estimator=estimator)
    chosen = {} if estimator is None else {"estimator": estimator}
    return Scores(
        statistics.modules,
        scores,
        base_parameters=size,
        provenance={**facts, "aggregation": aggregation, **chosen},
    )
