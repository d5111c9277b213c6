"""Metrics of held-out rows by task; what a library defines is the library's."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, root_mean_squared_error


def classification_metrics(
    predicted: Sequence[int], targets: Sequence[int]
) -> dict[str, float]:
    """Share of right answers, and the F1 of each class averaged over the classes."""
    return {
        "accuracy": float(accuracy_score(targets, predicted)),
        "macro_f1": float(f1_score(targets, predicted, average="macro", zero_division=0)),
    }


def regression_metrics(
    predicted: Sequence[float], targets: Sequence[float]
) -> dict[str, float]:
    """Root of the mean squared error, and Pearson's correlation where there is one."""
    found = {"rmse": float(root_mean_squared_error(targets, predicted))}
    if np.ptp(predicted) > 0 and np.ptp(targets) > 0:
        found["pearson"] = float(stats.pearsonr(predicted, targets).statistic)
    return found


def language_metrics(loss: float) -> dict[str, float]:
    """Perplexity of a mean loss per token, in nats."""
    return {"perplexity": math.exp(min(loss, 700.0))}
