"""The labelled examples of a calibration batch: what they count, their losses, their checks."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.errors import InvalidOption, NumericalFailure, UnsupportedModule
from fimlora.measuring.examples.batches import (
    Batch,
    count_examples,
    runs_alone,
    select,
    to_device,
)
from fimlora.measuring.examples.losses import BY_TOKEN, IGNORED, Loss, LossKind, logits_of
from fimlora.measuring.examples.media_dtype import cast_media
from fimlora.measuring.examples.null_labels import NullLabels
from fimlora.measuring.examples.padding import (
    PASS_ON_CPU,
    PASS_ON_DEVICE,
    Padding,
    find_padding,
)
from fimlora.model.hooks import without_tokens
from fimlora.model.targets import base_model_of
from fimlora.plan import TargetModule


@dataclass(frozen=True)
class Examples:
    """Some labelled examples of a calibration batch.

    Attributes:
        batch: They alone, under the model's argument names.
        weights: What each of them counts in the loss of the whole batch.
        padding: Where their padding is, if it may be cut.
        order: Where each example of the calibration batch has gone, if they were sorted.
        numbers: Which examples of the run they are, counted over all batches as they were given,
            with those that carry no label; on the CPU. ``None`` where nothing is recorded.
        null_labels: Labels that say nothing about them, if there is to be a null.
        labels_by_token: Whether each token has a label of its own.
    """

    batch: Batch
    weights: Tensor
    padding: Padding | None = None
    order: Tensor | None = None
    numbers: Tensor | None = None
    null_labels: Tensor | None = None
    labels_by_token: bool = False

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def token_mask(self) -> Tensor | None:
        """Which tokens are not padding, examples by tokens, if the batch says so."""
        mask = self.batch.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            return None
        return mask.to(self.weights.device, non_blocking=True)  # once, not for every module

    @property
    def label_mask(self) -> Tensor | None:
        """Which tokens carry a label, examples by tokens, where each has one of its own."""
        if not self.labels_by_token:
            return None
        is_labelled: Tensor = self.batch["labels"] != IGNORED
        if (mask := self.token_mask) is not None and mask.shape == is_labelled.shape:
            is_labelled = is_labelled.to(mask.device) & (mask != 0)
        return is_labelled.to(self.weights.device, non_blocking=True)

    def part(self, start: int, size: int) -> "Examples":
        """Take a micro-batch.

        Its padding is cut to its longest example. What has one tensor for each example runs one
        at a time. It ends early where the next example is
        so much shorter that it is better run with others of its length.

        Args:
            start: Its first example.
            size: Its number of examples at most.

        Returns:
            These examples, with the weights they have in the whole batch.
        """
        stop = min(start + (1 if runs_alone(self.batch) else size), len(self))
        if self.padding is not None:
            on_cpu = self.weights.device.type == "cpu"
            pass_tokens = PASS_ON_CPU if on_cpu else PASS_ON_DEVICE
            padding = self.padding.of(range(start, stop))
            stop = start + padding.count_alike(pass_tokens=pass_tokens)
        null_labels = self.null_labels
        if null_labels is not None:
            null = self.batch | {"labels": null_labels}
            null_labels = self._cut(null, start, stop)["labels"]
        batch = self._cut(self.batch, start, stop)
        numbers = None if self.numbers is None else self.numbers[start:stop]
        return Examples(
            batch,
            self.weights[start:stop],
            numbers=numbers,
            null_labels=null_labels,
            labels_by_token=self.labels_by_token,
        )

    def _cut(self, batch: Batch, start: int, stop: int) -> Batch:
        """Take some examples of such a batch, without the padding of the longest."""
        if stop - start < len(self):
            batch = select(batch, slice(start, stop), n_examples=len(self))
        return batch if self.padding is None else self.padding.of(range(start, stop)).cut(batch)

    def parts(self, size: int) -> list["Examples"]:
        """Cut them into micro-batches.

        Args:
            size: Examples of each at most.

        Returns:
            All of them, in order.
        """
        found: list[Examples] = []
        while (start := sum(map(len, found))) < len(self):
            found.append(self.part(start, size))
        return found


def labelled_examples(
    batch: Batch,
    loss: Loss,
    device: torch.device,
    *,
    first: int = 0,
    null: NullLabels | None = None,
) -> Examples:
    """Leave out the examples that carry no label, and sort the others by length.

    Args:
        batch: A calibration batch.
        loss: The loss, which knows what a label is.
        device: Where the weights will be needed.
        first: Examples in the batches before.
        null: Draws null labels, if there is to be a null.

    Returns:
        The others, the longest first where padding may be cut; possibly none.
    """
    if loss.loss_fn is None:
        batch = batch | {"labels": batch["labels"].cpu()}  # to be looked at without waiting
    counts = loss.count_labels(batch, count_examples(batch)).cpu()
    labelled, numbers = counts > 0, first + torch.arange(len(counts))
    if not labelled.all():
        batch = select(batch, labelled.nonzero()[:, 0], n_examples=len(counts))
        counts, numbers = counts[labelled], numbers[labelled]
    null_labels = None
    if null is not None and len(counts):
        null_labels = null.draw(batch["labels"], numbers)
    padding, order = None, None
    if loss.loss_fn is None and len(counts):
        padding = find_padding(batch, labels_by_token=loss.kind is LossKind.CAUSAL_LM)
    if padding is not None and (rows := padding.by_length()) != sorted(rows):
        padding, sorting = padding.of(rows), torch.tensor(rows)
        batch = select(batch, sorting, n_examples=len(counts))
        counts, numbers = counts[sorting], numbers[sorting]
        order = sorting.argsort().to(device)
        null_labels = None if null_labels is None else null_labels[sorting]
    weights = (counts / counts.sum()).to(device, torch.float32)
    by_token = loss.kind in BY_TOKEN
    return Examples(batch, weights, padding, order, numbers, null_labels, by_token)


def example_losses(
    model: nn.Module,
    loss: Loss,
    examples: Examples,
    device: torch.device,
    where: str = "the batch",
) -> Tensor:
    """Run the model's forward pass, for its own labels alone.

    Args:
        model: The model, wrapped by PEFT or not.
        loss: The loss.
        examples: The examples to run.
        device: The model's device.
        where: What to call the batch in an error.

    Returns:
        One loss per example, on a graph if the model builds one.
    """
    only = replace(examples, null_labels=None)
    return losses_and_null(model, loss, only, device, where)[0]


def losses_and_null(
    model: nn.Module,
    loss: Loss,
    examples: Examples,
    device: torch.device,
    where: str = "the batch",
) -> tuple[Tensor, ...]:
    """Run the model's forward pass, and evaluate its loss once or twice.

    Args:
        model: The model, wrapped by PEFT or not.
        loss: The loss.
        examples: The examples to run.
        device: The model's device.
        where: What to call the batch in an error.

    Returns:
        One loss per example, on a graph if the model builds one; and, if the examples have
        null labels, one per example under these, on the same graph.

    Raises:
        InvalidOption: The caller's own loss has another shape.
    """
    inputs, batch = _inputs_of(model, loss, examples, device), examples.batch
    batches = [batch]
    if examples.null_labels is not None:
        batches.append(batch | {"labels": _as_labels(examples.null_labels, batch)})
    hidden: list[Tensor] = []
    if loss.head is None:
        outputs = _run(model, inputs)
    else:
        # The head sees no token, the loss what the head would have seen.
        with without_tokens(loss.head.linear, batch["labels"].shape) as hidden:
            outputs = _run(model, inputs)
    if hidden:
        found = loss.per_example_from_hidden(hidden[0], batches, where)
    else:
        _check_logits(model, outputs, batch, loss)
        found = tuple(loss.per_example(outputs, some, where) for some in batches)
    for losses in found:
        if losses.shape != (len(examples),):
            raise InvalidOption(
                f"loss_fn gave shape {tuple(losses.shape)}; expected one loss per example, "
                f"({len(examples)},)"
            )
    return found


def _as_labels(null_labels: Tensor, batch: Batch) -> Tensor:
    """Put null labels where those of a batch are: a loss of the caller's own may look there."""
    return null_labels.to(batch["labels"].device, non_blocking=True)


def example_logits(
    model: nn.Module,
    loss: Loss,
    examples: Examples,
    device: torch.device,
) -> Tensor:
    """Run a classifier's forward pass, as `example_losses` does.

    Args:
        model: The model, wrapped by PEFT or not.
        loss: Its loss.
        examples: The examples to run.
        device: The model's device.

    Returns:
        The model's logits.
    """
    return logits_of(_run(model, _inputs_of(model, loss, examples, device)))


def _inputs_of(model: nn.Module, loss: Loss, examples: Examples, device: torch.device) -> Batch:
    """What the model is called with for its logits."""
    inputs = cast_media(model, to_device(examples.batch, device))
    base: Any = base_model_of(model)
    if loss.loss_fn is None:
        labels = inputs.pop("labels")  # the model's own loss would be computed for nothing
        if loss.kind is LossKind.SEQ2SEQ_LM and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = base.prepare_decoder_input_ids_from_labels(labels)
    if accepts_cache(model):
        inputs.setdefault("use_cache", False)
    return inputs


def _check_logits(model: nn.Module, outputs: Any, batch: Batch, loss: Loss) -> None:
    """See that there are logits for every token, and no others.

    Raises:
        UnsupportedModule: There are not, as with prompts before the tokens.
    """
    if loss.kind not in BY_TOKEN:
        return
    logits, labels = logits_of(outputs), batch["labels"]
    if logits.shape[:-1] != labels.shape:
        raise UnsupportedModule(
            f"{type(base_model_of(model)).__name__} gives {logits.shape[1]} logits for "
            f"{labels.shape[1]} tokens, as with prompts that are learnt: which of them are "
            "trained is not known; give a loss_fn that returns one loss per example"
        )


def _run(model: nn.Module, inputs: Batch) -> Any:
    """Run a model, and name what classifiers complain of."""
    try:
        return model(**inputs)
    except ValueError as error:
        if "no padding token is defined" not in str(error):
            raise
        kind = type(base_model_of(model)).__name__
        raise InvalidOption(
            f"{kind} cannot tell where examples end, as its config names no padding: set "
            "pad_token_id on the config of its text"
        ) from error


def accepts_cache(model: nn.Module) -> bool:
    """Say whether a model is to be told to keep no keys and values of past tokens."""
    base: Any = base_model_of(model)
    return "use_cache" in inspect.signature(base.forward).parameters


def check_finite(
    modules: Sequence[TargetModule], losses: Tensor, checks: Tensor, where: str
) -> None:
    """Look at a batch's numbers, in the one transfer from the device that it costs.

    Args:
        modules: Target modules.
        losses: Losses of the batch's examples.
        checks: One number per module, finite iff all its sums are.
        where: What to call the batch in an error.

    Raises:
        NumericalFailure: One of them is NaN or infinite.
    """
    found = torch.cat([losses.double(), checks.double().to(losses.device)]).tolist()
    for value in found[: len(losses)]:
        if not math.isfinite(value):
            raise NumericalFailure(f"loss is {value} in {where}")
    for module, value in zip(modules, found[len(losses) :], strict=True):
        if not math.isfinite(value):
            raise NumericalFailure(
                f"the gradient of target module {module.name!r} is {value} in {where}"
            )
