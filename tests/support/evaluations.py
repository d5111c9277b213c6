"""Evaluations without training: losses from a formula, run by run as the schedule asks."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fimlora_worker.evaluation.runs import RunResult, RunSpec
from fimlora_worker.evaluation.schedule import next_runs
from fimlora_worker.evaluation.settings import EvaluationSettings

Surface = Callable[[RunSpec], float]


def make_settings(**changes: Any) -> EvaluationSettings:
    """Three arms, four rates, five seeds, two of tuning."""
    given = {
        "arms": ("uniform", "random", "fim"),
        "learning_rates": (1e-3, 2e-3, 4e-3, 8e-3),
        "seeds": (0, 1, 2, 3, 4),
        "tuning_seeds": (100, 101),
    }
    return EvaluationSettings(**{**given, **changes})


def make_result(spec: RunSpec, loss: float, **metrics: float) -> RunResult:
    return RunResult(
        spec=spec,
        curve=((1, loss + 1), (2, loss)),
        metrics={"loss": loss, **metrics},
        adapter_parameters=1000,
        trainable_parameters=1200,
        seconds=2.0,
        n_steps=2,
    )


def run_all(settings: EvaluationSettings, surface: Surface) -> list[RunResult]:
    """Finish one run after the other, always the last one that may start."""
    results: list[RunResult] = []
    while waiting := next_runs(settings, results):
        results.append(make_result(waiting[-1], surface(waiting[-1])))
        assert len(results) < 1000
    return results


def bowl(best: Mapping[str, float]) -> Surface:
    """Loss that grows with the squared distance of the rate from an arm's best, in octaves."""

    def loss(spec: RunSpec) -> float:
        return 1 + 0.1 * math.log2(spec.learning_rate / best[spec.arm]) ** 2

    return loss


def noisy(
    generator: np.random.Generator, *, offsets: Mapping[str, float], spread: float = 0.01
) -> Surface:
    """Flat in the rate; a difficulty of each seed that arms share, and noise of each run."""
    shared: dict[int, float] = {}

    def loss(spec: RunSpec) -> float:
        hard = shared.setdefault(spec.seed, float(generator.normal(0, 0.1)))
        return 1 + hard + offsets.get(spec.arm, 0.0) + float(generator.normal(0, spread))

    return loss
