"""From statistics to scores: which method a rule needs. Nothing here imports torch."""

from dataclasses import replace

from fimlora.errors import InvalidOption
from fimlora.methods import fim, spectral
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
        estimator: ``exact``, ``sketched``, ``sampled`` or ``batch``; by default that of the run, and
            ``exact`` if it was both.

    Returns:
        What `fimlora.allocate` takes.

    Raises:
        InvalidOption: These are no statistics, the rule or the aggregation is unknown, the
            scale is not above 0 and finite, or the estimator was not recorded.
    """  # noqa: DOC502 - the helpers raise
    check_rule(rule)
    _check_type(statistics)
    fim.check_options(statistics, aggregation=aggregation, estimator=estimator)
    if scale is not None:
        statistics = statistics.rescaled(scale)
    if rule == "spectral":
        scores = spectral.take_spectra(statistics)
    else:
        scores = fim.score_fisher(statistics, aggregation=aggregation, estimator=estimator)
    return replace(
        scores,
        provenance={**statistics.provenance(), **scores.provenance},
        not_targeted=statistics.not_targeted,
    )


def _check_type(statistics: object) -> None:
    """Say where scores of one's own go.

    Raises:
        InvalidOption: It is something else than statistics.
    """
    if not isinstance(statistics, Statistics):
        raise InvalidOption(
            f"score takes Statistics, not {type(statistics).__name__}; give it what "
            "fimlora.measure returns, or hand numbers of your own to allocate: "
            "Scores(modules=..., by_module=...)"
        )
