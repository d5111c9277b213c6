"""From statistics to scores, by the name of a method. Nothing here imports torch."""

from collections.abc import Callable
from dataclasses import replace

from fimlora.errors import InvalidOption
from fimlora.methods import fim, spectral
from fimlora.methods.registry import Method, find_method
from fimlora.scores import Scores
from fimlora.statistics import Statistics

# What makes scores of statistics, an aggregation and an estimator; the controls go by no score,
# but their plans show those of `fim`.
Scorer = Callable[[Statistics, str, str | None], Scores]
SCORERS: dict[str, Scorer] = {
    "fim": fim.score_fisher,
    "spectral": spectral.take_spectra,
    "uniform": fim.score_fisher,
    "random": fim.score_fisher,
}


def score(
    statistics: Statistics,
    method: str = "fim",
    *,
    scale: int | float | None = None,
    aggregation: str = "mean",
    estimator: str | None = None,
) -> Scores:
    """Take from statistics what plans of a method need, whatever their budget.

    Args:
        statistics: What `fimlora.measure` returned, or what was read from its file.
        method: A name in `fimlora.methods.registry.METHODS`: ``fim`` takes the Fisher
            information of LoRA-B, ``spectral`` the singular values of the mean gradient;
            ``uniform`` and ``random`` are the controls.
        scale: LoRA scale of every module; that of the statistics by default.
        aggregation: How the Fisher information becomes one number: ``mean``, ``max`` or
            ``l2``.
        estimator: ``exact``, ``sketched``, ``sampled`` or ``batch``; by default that of the run, and
            ``exact`` if it was both.

    Returns:
        What `fimlora.allocate` takes; they name the rule that they go with.

    Raises:
        InvalidOption: These are no statistics, or they lack what the method needs; the method
            or the aggregation is unknown, the scale is not above 0 and finite, or the
            estimator was not recorded.
    """  # noqa: DOC502 - the helpers raise
    chosen = find_method(method)
    _check_type(statistics)
    fim.check_options(statistics, aggregation=aggregation, estimator=estimator)
    _check_recorded(statistics, chosen)
    if scale is not None:
        statistics = statistics.rescaled(scale)
    scores = SCORERS[method](statistics, aggregation, estimator)
    return replace(
        scores,
        rule=chosen.rule,
        method=method,
        provenance={**statistics.provenance(), **scores.provenance},
        not_targeted=statistics.not_targeted,
    )


def _check_recorded(statistics: Statistics, method: Method) -> None:
    """See that there is what the method goes by.

    Raises:
        InvalidOption: Something was not recorded.
    """
    for record in sorted(method.record):
        if statistics.modules and not getattr(statistics, record):
            raise InvalidOption(
                f"method {method.name!r} needs {record}, and these statistics hold none; "
                f"measure with record={record.value!r}"
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
