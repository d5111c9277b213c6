"""Test a model on the held-out rows: the loss its class trains with, and the task's metrics.

The loss is the mean over all rows, or over all labelled tokens of them, however batches are
made.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fimlora_worker.evaluation.metrics import (
    classification_metrics,
    language_metrics,
    regression_metrics,
)
from fimlora_worker.evaluation.runs import LOSS
from fimlora_worker.inputs.calibration_data import PaddedBatches
from fimlora_worker.inputs.token_spans import IGNORED


def held_out_metrics(
    model: nn.Module,
    batches: PaddedBatches,
    *,
    problem_type: str | None,
    on_batch: Callable[[], None],
) -> dict[str, float]:
    """Loss and metrics; the loss alone where it is no number.

    Args:
        model: The model; it is in the mode it was in when this returns.
        batches: The held-out examples.
        problem_type: Transformers' word for a classifier's loss; ``None`` for language models.
        on_batch: Called before each batch.
    """
    device = next(model.parameters()).device
    # What a decoder of its own writes is predicted from its first token on.
    first = 0 if getattr(model.config, "is_encoder_decoder", False) else 1
    total, weight = 0.0, 0
    predicted: list[Any] = []
    targets: list[Any] = []
    with _testing(model):
        for batch in batches:
            on_batch()
            placed = {name: tensor.to(device) for name, tensor in batch.items()}
            output = model(**placed)
            n = _n_labels(batch["labels"], problem_type, first)
            total, weight = total + float(output.loss) * n, weight + n
            if problem_type:
                predicted += _predictions(output.logits, problem_type)
                targets += batch["labels"].tolist()
    loss = total / weight
    if not math.isfinite(loss):
        return {LOSS: math.nan}
    return {LOSS: loss, **_metrics(problem_type, loss, predicted, targets)}


@contextmanager
def _testing(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _n_labels(labels: Tensor, problem_type: str | None, first: int) -> int:
    """Rows of a classifier; tokens of a language model from the first that is predicted."""
    return len(labels) if problem_type else int((labels[:, first:] != IGNORED).sum())


def _predictions(logits: Tensor, problem_type: str) -> list[Any]:
    if problem_type == "regression":
        found: list[Any] = logits.float().squeeze(-1).tolist()
        return found
    return logits.argmax(-1).tolist()


def _metrics(
    problem_type: str | None, loss: float, predicted: list[Any], targets: list[Any]
) -> dict[str, float]:
    if problem_type is None:
        return language_metrics(loss)
    if problem_type == "regression":
        return regression_metrics(predicted, targets)
    return classification_metrics(predicted, targets)
