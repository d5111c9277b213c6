"""Compare the loss that is measured with the model's own, before anything is measured.

A model may shift labels or not, may add something to its loss, may put prompts before its
tokens or predict more than one token: what it does is asked of its own forward pass, over a
few tokens of two examples that differ in their number of labels.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.errors import UnsupportedModule
from fimlora.measuring.examples.batches import Batch, runs_alone, select, to_device
from fimlora.measuring.examples.examples import Examples, accepts_cache, example_losses
from fimlora.measuring.examples.losses import BY_TOKEN, IGNORED, Loss, LossKind, count_labels
from fimlora.measuring.examples.media_dtype import cast_media
from fimlora.measuring.examples.padding import Padding, find_padding
from fimlora.measuring.examples.question import Question, named_failure
from fimlora.model.experts.grouped import find_misfit, way_out_of
from fimlora.model.targets import base_model_of

# A short slice: so many columns of it, before and from its first label on.
_CONTEXT, _LABELS = 8, 8
_COLUMNS = _CONTEXT + _LABELS
_LABELS_OF_SECOND = 3
_TOLERANCE = 1e-4  # relative; losses in half precision are allowed their rounding
_AUXILIARY = ("router_aux_loss_coef", "router_z_loss_coef", "aux_loss_coef", "z_loss_coef")
_READ_AS = {
    LossKind.CAUSAL_LM: "the cross-entropy of every token with the next one",
    LossKind.SEQ2SEQ_LM: "the cross-entropy of the decoder's tokens with their labels",
    LossKind.SINGLE_LABEL: "the cross-entropy of one class per example",
    LossKind.MULTI_LABEL: "the mean binary cross-entropy of the classes",
    LossKind.REGRESSION: "the mean squared error of the outputs",
}
_TRY = "try other rows, or another dtype"
_WAY_OUT = "give a loss_fn that returns one loss per example to measure it"


def first_batch_fails(model: nn.Module) -> tuple[str, str]:
    """Say what it means if a model does not run on the first batch, and what to do then."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    kind = type(base_model_of(model)).__name__
    failure, way_out = f"{kind} fails on the first batch in {dtype}", _TRY
    misfit = find_misfit(base_model_of(model))
    if misfit is not None:
        cause, way_out = way_out_of(misfit)
        failure = f"{failure}, and {cause}"
    return failure, way_out


@contextmanager
def failures_named(model: nn.Module) -> Iterator[None]:
    """Name what the code of a model raises in passes of its first batch.

    Raises:
        UnsupportedModule: It does not run.
    """  # noqa: DOC502 - what `named_failure` makes
    try:
        yield
    except Exception as error:
        named = named_failure(error, *first_batch_fails(model))
        if named is error:
            raise
        raise named from error


@dataclass(frozen=True)
class OwnLossCheck:
    """Two passes over a few tokens.

    Attributes:
        kind: The model's class.
        loss: The loss that is measured.
        ours: Gives the loss of the slice as it is measured.
        own: Gives what the model says of the same slice.
        is_telling: Whether a mean over examples would show as another loss.
    """

    kind: str
    loss: Loss
    ours: Question
    own: Question
    is_telling: bool

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss: Loss,
        examples: Examples,
        device: torch.device,
        where: str,
        *,
        whole: bool = False,
    ) -> "OwnLossCheck":
        """Say what must be run.

        Args:
            model: The model, wrapped by PEFT or not.
            loss: The loss that is measured; not the caller's own.
            examples: Labelled examples of the first batch that has some.
            device: The model's device.
            where: What to call the batch in an error.
            whole: Take the examples with all their tokens, for a model that does not run on
                a few.

        Returns:
            The check, with two passes to be run.
        """
        kind = type(base_model_of(model)).__name__
        # Tokens stand for parts of an image, all of which must be there.
        is_alone = runs_alone(examples.batch)
        few = short_slice(examples, loss, whole=whole or is_alone)

        def ours() -> Tensor:
            losses = example_losses(model, loss, few, device, where)
            return (losses.double() * few.weights.to(losses.device).double()).sum()

        return cls(
            kind,
            loss,
            Question(ours, failure=first_batch_fails(model)),
            Question(
                lambda: _own_loss(model, few.batch, device),
                failure=(f"the own loss of {kind} fails", _WAY_OUT),
            ),
            # One at a time, no mean over examples is ever taken.
            is_alone or loss.kind not in BY_TOKEN or tells_means_apart(few, loss),
        )

    @property
    def failed(self) -> bool:
        """Whether the model did not run on the slice."""
        return self.ours.error is not None or self.own.error is not None

    def judge(self) -> None:
        """Compare, once both have been run.

        Raises:
            UnsupportedModule: The model's own loss is another one, or the model fails.
        """
        for question in (self.ours, self.own):
            if question.error is not None:
                raise question.named(question.error)
        assert self.ours.answer is not None
        assert self.own.answer is not None
        ours, own = self.ours.answer.item(), self.own.answer.item()
        dtype = self.own.answer.dtype
        tolerance = max(_TOLERANCE, 4 * torch.finfo(dtype).eps) * max(abs(ours), abs(own), 1e-3)
        if not math.isnan(ours) and not abs(ours - own) <= tolerance:  # NaN has another name
            raise UnsupportedModule(
                f"the own loss of {self.kind} is {own:.6g} on a few tokens of the data, "
                f"where {_READ_AS[self.loss.kind]} is {ours:.6g}: it is trained with another "
                f"loss than would be measured; {_WAY_OUT}"
            )


def _own_loss(model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    inputs = cast_media(model, to_device(batch, device))
    if accepts_cache(model):
        inputs.setdefault("use_cache", False)
    kind = type(base_model_of(model)).__name__
    try:
        outputs = model(**inputs)
    except TypeError as error:
        if "labels" not in str(error):
            raise
        raise UnsupportedModule(f"{kind} takes no labels; {_WAY_OUT}") from error
    own = outputs.get("loss") if isinstance(outputs, Mapping) else outputs[0]
    if not isinstance(own, Tensor) or own.numel() != 1:
        raise UnsupportedModule(
            f"{kind} gives no loss for labels, so what it is trained with is not known; "
            f"{_WAY_OUT}"
        )
    return own.detach().reshape(())


def short_slice(examples: Examples, loss: Loss, *, whole: bool = False) -> Examples:
    """Take a few tokens of two examples, of which one has fewer labels if any has.

    Args:
        examples: Labelled examples, the shortest last where they are sorted.
        loss: Says what a label is.
        whole: Leave out no token.

    Returns:
        Its logits are few, whatever the vocabulary. What has a tensor whose columns are not
        known stays whole.
    """
    n = len(examples)
    rows = (
        torch.tensor([n - 1])
        if runs_alone(examples.batch)
        else _most_and_fewest(examples, loss)
    )
    batch = select(examples.batch, rows, n_examples=n)
    by_token = loss.kind is LossKind.CAUSAL_LM
    padding = None if whole else _padding_of(batch, labels_by_token=by_token)
    if by_token:
        batch = _window(batch, padding.names) if padding is not None else batch
    elif padding is not None:
        batch = padding.cut(batch)
        batch |= {name: batch[name][:, :_COLUMNS] for name in padding.names}
    labels = batch["labels"]
    if loss.kind is LossKind.SEQ2SEQ_LM and not whole:
        few, is_alone = labels[:, :_COLUMNS], not any(n.startswith("decoder_") for n in batch)
        labels = few if is_alone and (few != IGNORED).any(dim=1).all() else labels
    if loss.kind in {LossKind.CAUSAL_LM, LossKind.SEQ2SEQ_LM}:
        batch |= {"labels": _thinned(labels, first=int(by_token))}
    counts = count_labels(batch["labels"], loss.kind)
    weights = counts / counts.sum()
    return Examples(batch, weights.to(examples.weights))


def tells_means_apart(examples: Examples, loss: Loss) -> bool:
    """See whether a mean over examples is another number than one over labels.

    Args:
        examples: Labelled examples of a batch.
        loss: Says what a label is.

    Returns:
        Whether two of them have different numbers of labels.
    """
    counts = count_labels(examples.batch["labels"], loss.kind)
    return bool(counts.min() < counts.max())


def _most_and_fewest(examples: Examples, loss: Loss) -> Tensor:
    """The last two examples, or others where these have as many labels as each other."""
    counts = count_labels(examples.batch["labels"], loss.kind)
    last = torch.arange(max(0, len(examples) - 2), len(examples))
    if len(last) == 1 or counts[last[0]] > counts[last[1]]:
        return last
    return torch.stack([counts.argmax(), len(counts) - 1 - counts.flip(0).argmin()])


def _window(batch: Batch, names: frozenset[str]) -> Batch:
    """Take the columns around the first label of each example."""
    labels = batch["labels"]
    is_label = (labels != IGNORED).int()
    is_label[:, 0] = 0  # nothing predicts it
    width = min(labels.shape[1], _COLUMNS)
    starts = (is_label.argmax(dim=1) - _CONTEXT).clamp(0, labels.shape[1] - width)
    columns = starts[:, None] + torch.arange(width)
    return batch | {name: _chosen(batch[name], columns) for name in names}


def _padding_of(batch: Batch, *, labels_by_token: bool) -> Padding | None:
    """Find the padding of a batch; one without a mask has none, if its columns are tokens."""
    ids = batch.get("input_ids")
    if "attention_mask" in batch or not isinstance(ids, Tensor):
        return find_padding(batch, labels_by_token=labels_by_token)
    masked = batch | {"attention_mask": torch.ones_like(ids)}
    padding = find_padding(masked, labels_by_token=labels_by_token)
    return padding and replace(padding, names=padding.names - {"attention_mask"})


def _chosen(tensor: Tensor, columns: Tensor) -> Tensor:
    """Take columns of each row."""
    columns = columns.to(tensor.device)
    if tensor.dim() == 3:
        columns = columns[:, :, None].expand(-1, -1, tensor.shape[2])
    return tensor.gather(1, columns)


def _thinned(labels: Tensor, *, first: int) -> Tensor:
    """Leave the last example a few labels only, so that a mean over examples shows."""
    counts = (labels[-1, first:] != IGNORED).int().cumsum(dim=0)
    last = labels[-1].clone()
    last[first:] = last[first:].masked_fill(counts > _LABELS_OF_SECOND, IGNORED)
    return torch.cat([labels[:-1], last[None]])


@contextmanager
def without_auxiliary_losses(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Keep a model from adding to its loss, or changing its config, inside the block.

    Args:
        model: The model, wrapped by PEFT or not.

    Yields:
        What it would add, by the names of the weights in its config. The config is as
        before when the block ends.
    """
    configs: dict[int, Any] = {
        id(module.config): module.config
        for module in model.modules()
        if hasattr(module, "config") and not isinstance(module.config, (dict, nn.Module))
    }
    before = [(config, dict(vars(config))) for config in configs.values()]
    found: set[str] = set()
    try:
        for config in configs.values():
            if getattr(config, "output_router_logits", False):
                names = [name for name in _AUXILIARY if getattr(config, name, None)]
                found.update(names or ["output_router_logits"])
                config.output_router_logits = False
        yield tuple(sorted(found))
    finally:
        for config, kept in before:
            vars(config).update(kept)
