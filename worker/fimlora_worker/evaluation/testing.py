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

from fimlora.measuring.examples.losses import BY_TOKEN, LossKind, count_labels
from fimlora_worker.evaluation.metrics import (
    classification_metrics,
    language_metrics,
    regression_metrics,
)
from fimlora_worker.evaluation.runs import LOSS
from fimlora_worker.inputs.calibration_data import PaddedBatches


def held_out_metrics(
    model: nn.Module,
    batches: PaddedBatches,
    *,
    kind: LossKind,
    on_batch: Callable[[], None],
) -> dict[str, float]:
    """Loss and metrics; the loss alone where it is no number.

    Args:
        model: The model; it is in the mode it was in when this returns.
        batches: The held-out examples.
        kind: How labels become the model's loss.
        on_batch: Called before each batch.
    """
    device = next(model.parameters()).device
    total, weight = 0.0, 0
    predicted: list[Any] = []
    targets: list[Any] = []
    with _testing(model):
        for batch in batches:
            on_batch()
            placed = {name: tensor.to(device) for name, tensor in batch.items()}
            output = model(**placed)
            n = int(count_labels(batch["labels"], kind).sum())
            total, weight = total + float(output.loss) * n, weight + n
            if kind not in BY_TOKEN:
                predicted += _predictions(output.logits, kind)
                targets += batch["labels"].tolist()
    loss = total / weight
    if not math.isfinite(loss):
        return {LOSS: math.nan}
    return {LOSS: loss, **_metrics(kind, loss, predicted, targets)}


@contextmanager
def _testing(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _predictions(logits: Tensor, kind: LossKind) -> list[Any]:
    if kind is LossKind.REGRESSION:
        found: list[Any] = logits.float().squeeze(-1).tolist()
        return found
    return logits.argmax(-1).tolist()


def _metrics(
    kind: LossKind, loss: float, predicted: list[Any], targets: list[Any]
) -> dict[str, float]:
    if kind in BY_TOKEN:
        return language_metrics(loss)
    if kind is LossKind.REGRESSION:
        return regression_metrics(predicted, targets)
    return classification_metrics(predicted, targets)
