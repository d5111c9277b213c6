"""A classifier's last linear map, fitted on the frozen features of the model below it.

A map that is drawn at random drowns the task: gradients are then the model's under random
feedback, whatever the labels are.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.errors import EmptyCalibration, InvalidOption
from fimlora.measuring.examples.batches import Batch, as_batch
from fimlora.measuring.examples.examples import Examples, labelled_examples
from fimlora.measuring.examples.input_checks import check_inputs
from fimlora.measuring.examples.losses import Loss, LossKind, check_labels, choose_loss
from fimlora.measuring.head.last_linear import LastLinear
from fimlora.measuring.head.linear_fit import fit_linear
from fimlora.model.input_limits import input_limits
from fimlora.model.targets import base_model_of
from fimlora.statistics import Statistics

_FITTED = frozenset({LossKind.SINGLE_LABEL, LossKind.MULTI_LABEL, LossKind.REGRESSION})


@dataclass(frozen=True)
class FittedHead:
    """A fitted map.

    Attributes:
        weights: Its parameters by name, on the CPU in the model's dtype; none where the map
            came with the checkpoint and was left alone.
        facts: What `fimlora.Statistics` says of it as ``head``.
    """

    weights: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def stated_in(self, statistics: Statistics) -> Statistics:
        """Say in statistics that they were measured under this head, and keep it with them.

        Args:
            statistics: What was measured under it.

        Returns:
            The same, with the head.
        """
        arrays = {name: self.weights[name].double().numpy() for name in sorted(self.weights)}
        # In the order of a file that is read again: a rank map then has the same bytes.
        facts = json.loads(json.dumps(self.facts, sort_keys=True))
        # Null and halves were measured under it, too; its weights are kept once.
        parts = {name: replace(part, head=facts) for name, part in statistics.parts.items()}
        return replace(statistics, head=facts, head_weights=arrays).with_parts(parts)


def head_of(statistics: Statistics) -> FittedHead | None:
    """Take the head from statistics that were measured under one.

    Args:
        statistics: The statistics.

    Returns:
        It; ``None`` where they say nothing of one.
    """
    if statistics.head is None:
        return None
    weights = {name: torch.tensor(a) for name, a in statistics.head_weights.items()}
    return FittedHead(weights, statistics.head)


@dataclass
class HeadRows:
    """What a map is fitted to: its inputs and the labels, example by example."""

    features: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add the examples of a pass."""
        self.features.append(features.cpu())
        self.labels.append(labels.cpu())

    def fit(self, linear: LastLinear, kind: LossKind, *, drawn: Collection[str]) -> FittedHead:
        """Fit the map.

        Args:
            linear: The map.
            kind: How its outputs become a loss.
            drawn: Modules that the checkpoint lacks; what of them lies elsewhere is not fitted.

        Returns:
            The fitted map, named as it is in the model.
        """
        made = linear.linear
        fit = fit_linear(
            torch.cat(self.features),
            torch.cat(self.labels),
            kind,
            n_outputs=made.out_features,
            has_bias=made.bias is not None,
        )
        weights = {f"{linear.name}.weight": fit.weight.to(made.weight.dtype)}
        if fit.bias is not None:
            weights[f"{linear.name}.bias"] = fit.bias.to(made.weight.dtype)
        facts = {"kind": "fitted", "module": linear.name, **fit.facts}
        return FittedHead(weights, facts | _also_drawn({*drawn} - {linear.name}))


def left_alone(kind: str, drawn: Collection[str]) -> FittedHead:
    """Say of a head that nothing of it was fitted.

    Args:
        kind: ``pretrained`` where its last map came with the checkpoint, ``adapter`` where it
            came with a trained adapter, ``fresh`` where it is as it was drawn.
        drawn: Modules that the checkpoint lacks.

    Returns:
        A head without weights.
    """
    return FittedHead({}, {"kind": kind, **_also_drawn(drawn)})


def _also_drawn(names: Collection[str]) -> dict[str, list[str]]:
    return {"left_as_drawn": sorted(names)} if names else {}


def head_examples(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], device: torch.device
) -> tuple[Loss, list[Examples]]:
    """Read all batches.

    Padding stays: what a pass costs with it is little beside finding out whether it may go.

    Args:
        model: A classifier, or its skeleton.
        batches: Its batches, with labels.
        device: Where they will run.

    Returns:
        Its loss, and the labelled examples of each batch.

    Raises:
        EmptyCalibration: There is no batch, or no example with a label.
        InvalidOption: The model is no classifier, or a label is none of its classes.
    """
    items: list[Batch] = [as_batch(item) for item in batches]
    if not items:
        raise EmptyCalibration("there is no batch to fit the head on")
    loss, limits = choose_loss(model, items[0], None), input_limits(model)
    if loss.kind not in _FITTED:
        raise InvalidOption(
            f"{type(base_model_of(model)).__name__} is no classifier: only the head of a "
            "sequence classification model is fitted"
        )
    base: Any = base_model_of(model)
    for number, item in enumerate(items, 1):
        where = f"batch {number} of {len(items)} for the head"
        check_inputs(item, limits, where)
        check_labels(item["labels"].cpu(), base.config.num_labels, loss.kind, where)
    found = [replace(labelled_examples(i, loss, device), padding=None) for i in items]
    if not any(map(len, found)):
        raise EmptyCalibration("no example carries a label to fit the head on")
    return loss, [examples for examples in found if len(examples)]


def put_head(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a model a fitted map.

    Args:
        model: The model, wrapped by PEFT or not; it is changed in place.
        weights: Parameters by name.

    Returns:
        What was there.
    """
    base, replaced = base_model_of(model), {}
    with torch.no_grad():
        for name, tensor in weights.items():
            parameter = base.get_parameter(name)
            replaced[name] = parameter.detach().clone()
            parameter.copy_(tensor)
    return replaced


@contextmanager
def with_head(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a model have a fitted map for as long as the block lasts.

    Args:
        model: The model.
        weights: Parameters by name.

    Yields:
        None. The map is as before when the block ends, also when it raises.
    """
    replaced = put_head(model, weights)
    try:
        yield
    finally:
        put_head(model, replaced)


def one_of_each(batches: Sequence[Examples]) -> Examples:
    """The least that a question about the model can be asked with: one example."""
    return batches[0].part(0, 1)
