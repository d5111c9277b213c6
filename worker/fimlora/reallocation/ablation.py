"""What an adapter loses without one of its ranks, and has from it alone, by trying."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fimlora.adapter.live import LiveAdapter
from fimlora.errors import EmptyCalibration, NoLabelledExample
from fimlora.measuring.examples.batches import as_batch, count_examples
from fimlora.measuring.examples.examples import Examples, example_losses, labelled_examples
from fimlora.measuring.examples.losses import Loss, choose_loss
from fimlora.measuring.settings import Settings
from fimlora.model.pass_state import PassState
from fimlora.model.placement import input_device
from fimlora.model.preserved import preserved


def ablated_importance(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    settings: Settings,
    adapter: LiveAdapter,
) -> dict[str, NDArray[np.float64]]:
    """Ablate every rank in turn: ``S(M) - S(M without i) + S(M with only i)``, S = -mean loss.

    Takes one forward pass over all batches, and two more per rank.

    Args:
        model: The model, on which the adapter acts alone.
        batches: Batches with labels.
        settings: What to use of them, and by which loss.
        adapter: The adapter.

    Returns:
        Importance by module (r).
    """
    with preserved(model, train_mode=False, seed=settings.seed) as state, torch.no_grad():
        mean_loss = _MeanLoss(model, batches, settings, state)
        columns = {name: adapter.matrices(name)[1].weight for name in adapter.layers}
        whole, found = mean_loss(), {}
        for name, B in columns.items():
            values = np.zeros(B.shape[1])
            for k in range(B.shape[1]):
                is_k = torch.arange(B.shape[1], device=B.device) == k
                with _gated([(B, ~is_k)]):
                    without = mean_loss()
                others = [
                    (other, other.new_zeros(other.shape[1])) for other in columns.values()
                ]
                with _gated([*((b, gate) for b, gate in others if b is not B), (B, is_k)]):
                    alone = mean_loss()
                values[k] = -whole + without - alone
            found[name] = values
    return found


class _MeanLoss:
    """The mean loss over examples of some batches, which are read once."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Mapping[str, Any]],
        settings: Settings,
        state: PassState,
    ) -> None:
        self._model, self._state = model, state
        self._device = input_device(model)
        self._loss, self._parts = _parts_of(model, batches, settings, self._device)

    def __call__(self) -> float:
        total, n = 0.0, 0
        for part in self._parts:
            self._state.set()
            losses = example_losses(self._model, self._loss, part, self._device)
            total += float(losses.double().sum())
            n += len(part)
        return total / n


def _parts_of(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    settings: Settings,
    device: torch.device,
) -> tuple[Loss, list[Examples]]:
    """The labelled examples of the batches, in micro-batches, and their loss."""
    read = [*map(as_batch, islice(batches, settings.n_batches))]
    if not read:
        raise EmptyCalibration("the loader gave no batch")
    loss = choose_loss(model, read[0], settings.loss_fn)
    parts: list[Examples] = []
    for batch in read:
        examples = labelled_examples(batch, loss, device)
        # Padding stays: whether it may be cut depends on the model.
        examples = replace(examples, padding=None)
        parts += examples.parts(settings.micro_batch_size or count_examples(batch))
    parts = [part for part in parts if len(part)]
    if not parts:
        raise NoLabelledExample("no example carries a label")
    return loss, parts


@contextmanager
def _gated(gates: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Multiply columns of B by gates; the values are back when the block ends."""
    before = [B.detach().clone() for B, _ in gates]
    try:
        for B, gate in gates:
            B.mul_(gate)
        yield
    finally:
        for (B, _), values in zip(gates, before, strict=True):
            B.copy_(values)
