"""From statistics to scores, by the name of a method. Nothing here imports torch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fimlora.errors import InvalidOption
from fimlora.methods import (
    cka_layers,
    coherent,
    controls,
    effective_rank,
    eva,
    fim,
    fim_over_null,
    fisher_layers,
    gora,
    kappa,
    spectral,
    spectral_denoised,
    vila,
)
from fimlora.methods.coherence import can_part, gradient_noise_scale
from fimlora.methods.fim_adapter import ADAPTER_GROUP
from fimlora.methods.registry import METHODS, find_method
from fimlora.scores import Scores
from fimlora.statistics import Statistics
from fimlora.statistics.options import Estimator

# What makes scores of statistics, an aggregation and an estimator; the controls go by no score,
# but their plans show those of `fim`, if there are such.
Scorer = Callable[[Statistics, str, str | None], Scores]
SCORERS: dict[str, Scorer] = {
    "fim": fim.score_fisher,
    "coherent": coherent.score_coherent,
    "spectral": spectral.take_spectra,
    "spectral-denoised": spectral_denoised.take_denoised,
    "fim-over-null": fim_over_null.score_over_null,
    "gora": gora.score_importance,
    "vila": vila.score_contrast,
    "kappa": kappa.score_condition,
    "eva": eva.take_variances,
    "fisher-layers": fisher_layers.score_trace,
    "fisher-layers-frobenius": fisher_layers.score_norm,
    "cka-layers": cka_layers.score_debiased,
    "cka-layers-biased": cka_layers.score_biased,
    "effective-rank": effective_rank.score_effective_rank,
    "uniform": controls.score_controls,
    "random": controls.score_controls,
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
        method: A name in `fimlora.methods.registry.METHODS`, whose summary says what it goes by.
        scale: LoRA scale of every module; that of the statistics by default.
        aggregation: How the Fisher information becomes one number: ``mean``, ``max`` or
            ``l2``.
        estimator: ``exact``, ``sketched``, ``sampled``, ``batch`` or ``adapter``; by default
            ``adapter`` where a trained adapter's gradients were recorded, else that of the run, and
            ``exact`` if it was both.

    Returns:
        What `fimlora.allocate` takes; they name the rule that they go with.

    Raises:
        InvalidOption: These are no statistics, or they lack what the method needs; the method
            or the aggregation is unknown, the scale is not above 0 and finite, or the
            estimator was not recorded.
    """
    chosen = find_method(method)
    _check_type(statistics)
    fim.check_options(statistics, aggregation=aggregation, estimator=estimator)
    if reason := obstacle(statistics, method):
        raise InvalidOption(reason)
    if scale is not None:
        statistics = statistics.rescaled(scale)
    scores = SCORERS[method](statistics, aggregation, estimator)
    return replace(
        scores,
        rule=chosen.rule,
        method=method,
        provenance={**statistics.provenance(), **_figures(statistics), **scores.provenance},
        not_targeted=statistics.not_targeted,
    )


def _figures(statistics: Statistics) -> dict[str, Any]:
    """What statistics tell besides, whatever the method."""
    if not can_part(statistics):
        return {}
    return {"gradient_noise_scale": gradient_noise_scale(statistics)}


def obstacle(statistics: Statistics, method: str) -> str | None:
    """Say why statistics cannot be scored by a method.

    Args:
        statistics: What `fimlora.measure` returned.
        method: Its name.

    Returns:
        What it lacks and how to have it, in a sentence without a stop; ``None`` where it
        lacks nothing.
    """
    needed = find_method(method)
    selected = next((m.name for m in statistics.modules if m.experts is not None), None)
    if selected is not None and not needed.takes_selected_experts:
        others = ", ".join(m.name for m in METHODS.values() if m.takes_selected_experts)
        return (
            f"method {method!r} goes by what is recorded of all experts of {selected!r} together, "
            f"and some of them are selected; take one of: {others}"
        )
    # First, as records may be empty for want of examples; with none, it is the records that lack.
    if 0 < statistics.n_examples < needed.fewest_examples:
        return _too_few(method, statistics.n_examples, needed.fewest_examples)
    for record in sorted(needed.record):
        if not statistics.holds(record):
            return (
                f"method {method!r} needs {record}, and these statistics hold none; "
                f"measure with record={record.value!r}"
            )
    is_trained = bool(statistics.quantities.get(ADAPTER_GROUP))
    if needed.needs_fisher and statistics.estimator is Estimator.NONE and not is_trained:
        return (
            f"method {method!r} needs gradients of the loss, and these statistics are of a run "
            "without an estimator; measure with estimator='auto'"
        )
    if needed.needs_null and (reason := _no_null(statistics)):
        return f"method {method!r} needs the null, and {reason}"
    if needed.needs_retain and statistics.retain is None:
        return (
            f"method {method!r} needs a second dataset, whose function is to be kept, and these "
            "statistics hold none; measure with retain=its batches"
        )
    if needed.needs_examples and not statistics.example_energies:
        return (
            f"method {method!r} needs the energy of each example, and these statistics hold "
            f"none; measure with estimator='exact' or 'sketched', not "
            f"{statistics.estimator.value!r}"
        )
    return None


def _too_few(method: str, n_examples: int, fewest: int) -> str:
    """Say that a method has more examples to compare."""
    there = "is one" if n_examples == 1 else f"are {n_examples}"
    least = {2: "two", 4: "four"}.get(fewest, str(fewest))
    return f"method {method!r} compares examples, and there {there}; measure at least {least}"


def _no_null(statistics: Statistics) -> str | None:
    """Why nothing can be held against the null, if so."""
    if statistics.no_null is not None:
        return f"there is none: {statistics.no_null}"
    if statistics.null is None:
        return "these statistics hold none; measure with null=True"
    if (targets := statistics.null.null_targets) and not targets[1]:
        return "all rows have one label, so that none could be exchanged for another"
    return None


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
