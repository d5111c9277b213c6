"""Metrics against their definitions, written out."""

import math

import numpy as np
import pytest

from fimlora_worker.evaluation.metrics import (
    classification_metrics,
    language_metrics,
    regression_metrics,
)


def test_accuracy_and_macro_f1_are_those_of_the_definition():
    """One class is never predicted, and one predicted class is never right."""
    random = np.random.RandomState(0)
    targets = random.randint(0, 4, size=57).tolist()
    predicted = [t if i % 3 else (t + 1) % 3 for i, t in enumerate(targets)]
    predicted = [0 if p == 3 else p for p in predicted]
    scores = []
    for c in range(4):
        tp = sum(p == t == c for p, t in zip(predicted, targets, strict=True))
        wrong = sum((p == c) != (t == c) for p, t in zip(predicted, targets, strict=True))
        scores.append(2 * tp / (2 * tp + wrong) if tp else 0.0)
    right = sum(p == t for p, t in zip(predicted, targets, strict=True))

    found = classification_metrics(predicted, targets)

    assert found == pytest.approx({"accuracy": right / 57, "macro_f1": sum(scores) / 4})


def test_error_and_correlation_are_those_of_the_definition():
    random = np.random.RandomState(1)
    targets = random.normal(size=40)
    predicted = targets * 0.3 + random.normal(size=40)

    found = regression_metrics(predicted.tolist(), targets.tolist())

    assert found["rmse"] == pytest.approx(math.sqrt(((predicted - targets) ** 2).mean()))
    assert found["pearson"] == pytest.approx(np.corrcoef(predicted, targets)[0, 1])


def test_a_constant_prediction_has_no_correlation():
    assert regression_metrics([1.0, 1.0], [0.0, 2.0]) == {"rmse": 1.0}


def test_perplexity_is_finite():
    assert language_metrics(math.log(7))["perplexity"] == pytest.approx(7)
    assert math.isfinite(language_metrics(1e6)["perplexity"])
