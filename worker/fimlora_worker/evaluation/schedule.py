"""Which runs come next, told from those that are finished: a pure function.

First every arm is tuned on the grid. If the best rate of any arm lies at an edge, the grid is
widened there by one rate, once and for all arms, so that each chooses from as many runs as the
others. Then every arm runs at its best rate with the final seeds. An arm that diverges at every
rate has no final runs; the verdict names it.
"""

from collections.abc import Iterable, Iterator, Sequence

from fimlora_worker.evaluation.runs import RunResult, RunSpec
from fimlora_worker.evaluation.settings import EvaluationSettings
from fimlora_worker.evaluation.tuning import best_rate, final_grid, rate_losses


def next_runs(settings: EvaluationSettings, finished: Iterable[RunResult]) -> list[RunSpec]:
    """All runs that can start now and are not finished; none when all is done.

    Args:
        settings: Of the evaluation.
        finished: Results so far, in any order.
    """
    results = list(finished)
    done = {result.spec.key for result in results}
    for phase in _phases(settings, results):
        if lacking := [spec for spec in phase if spec.key not in done]:
            return lacking
    return []


def best_rates(
    settings: EvaluationSettings, results: Sequence[RunResult]
) -> dict[str, float | None]:
    """Each arm's best rate once all tuning runs are finished; ``None`` where all diverged."""
    grid = final_grid(settings, results)
    return {arm: best_rate(rate_losses(arm, grid, results)) for arm in settings.arms}


def _phases(
    settings: EvaluationSettings, results: Sequence[RunResult]
) -> Iterator[list[RunSpec]]:
    """One list after the other; what makes a list is finished before it is asked for."""
    yield _tuning(settings, settings.learning_rates)
    yield _tuning(settings, final_grid(settings, results))
    # Seed by seed, so that an evaluation that is cut short has pairs.
    yield [
        RunSpec(arm, rate, seed, "final")
        for seed in settings.seeds
        for arm, rate in best_rates(settings, results).items()
        if rate is not None
    ]


def _tuning(settings: EvaluationSettings, rates: Sequence[float]) -> list[RunSpec]:
    return [
        RunSpec(arm, rate, seed, "tuning")
        for seed in settings.tuning_seeds
        for rate in rates
        for arm in settings.arms
    ]
