"""From results to what each arm came to: means, spreads, averaged curves."""

import math
from collections.abc import Sequence

import numpy as np

from fimlora_worker.evaluation.judgement import ArmSummary, Spread
from fimlora_worker.evaluation.runs import RunResult
from fimlora_worker.evaluation.settings import EvaluationSettings
from fimlora_worker.evaluation.tuning import best_rate, final_grid, rate_losses


def summarise(settings: EvaluationSettings, results: Sequence[RunResult]) -> list[ArmSummary]:
    """Each arm's runs in figures, in the order of the settings."""
    grid = final_grid(settings, results)
    return [_summary(arm, grid, results) for arm in settings.arms]


def final_results(
    arm: str, rate: float | None, results: Sequence[RunResult]
) -> list[RunResult]:
    """An arm's final runs at a rate, by seed."""
    found = [
        result
        for result in results
        if result.spec.arm == arm
        and result.spec.phase == "final"
        and result.spec.learning_rate == rate
    ]
    return sorted(found, key=lambda result: result.spec.seed)


def values_by_seed(results: Sequence[RunResult], metric: str) -> dict[int, float]:
    """A metric of every run that did not diverge."""
    return {
        result.spec.seed: result.metrics[metric]
        for result in results
        if not result.has_diverged and math.isfinite(result.metrics.get(metric, math.nan))
    }


def _summary(arm: str, grid: Sequence[float], results: Sequence[RunResult]) -> ArmSummary:
    rates = rate_losses(arm, grid, results)
    best = best_rate(rates)
    final = final_results(arm, best, results)
    every = [result for result in results if result.spec.arm == arm]
    sizes = [result.adapter_parameters for result in every]
    return ArmSummary(
        name=arm,
        best_rate=best,
        rates=tuple(rates),
        is_at_edge=best in {grid[0], grid[-1]},
        n_final=len(final),
        n_diverged=sum(result.has_diverged for result in final),
        adapter_parameters=(min(sizes), max(sizes)),
        trainable_parameters=max(result.trainable_parameters for result in every),
        seconds=_mean([result.seconds for result in final]),
        metrics=_metrics(final),
        curve=_mean_curve(final),
    )


def _metrics(results: Sequence[RunResult]) -> dict[str, Spread]:
    names = dict.fromkeys(name for result in results for name in result.metrics)
    found = {name: list(values_by_seed(results, name).values()) for name in names}
    return {name: _spread(values) for name, values in found.items() if values}


def _mean_curve(results: Sequence[RunResult]) -> tuple[tuple[int, float, float], ...]:
    losses: dict[int, list[float]] = {}
    for result in results:
        if not result.has_diverged:
            for step, loss in result.curve:
                losses.setdefault(step, []).append(loss)
    spreads = {step: _spread(values) for step, values in sorted(losses.items())}
    return tuple((step, each.mean, each.spread) for step, each in spreads.items())


def _spread(values: Sequence[float]) -> Spread:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(_mean(values), spread)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
