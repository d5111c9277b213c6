"""One loss per example, and what each example counts in the loss of its batch.

Symbols: N examples, T tokens, C classes, V vocabulary. An example's loss is the mean over
its own labels, so an example means the same in any batch. The model's own loss is a mean
over all labels of the batch; it is ``sum_n weights[n] * losses[n]`` with
``weights[n] = (labels of n) / (labels of the batch)``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.measuring.examples.chunked_loss import token_losses
from fimlora.measuring.examples.large_head import (
    CHUNK_SIZES,
    ChunkSizes,
    LargeHead,
    find_large_head,
)
from fimlora.model.targets import base_model_of
from fimlora.shapes import Float, Int

IGNORED = -100

# A loss of one's own: model outputs and batch to one loss per example.
LossFn = Callable[[Any, Mapping[str, Any]], Tensor]


class LossKind(StrEnum):
    """How logits and labels become a loss."""

    CAUSAL_LM = "causal_lm"
    """Cross-entropy of every token with the next one."""
    SEQ2SEQ_LM = "seq2seq_lm"
    """Cross-entropy of every token that a decoder puts out with its label."""
    SINGLE_LABEL = "single_label_classification"
    """Cross-entropy of one class per example."""
    MULTI_LABEL = "multi_label_classification"
    """Binary cross-entropy, averaged over the classes."""
    REGRESSION = "regression"
    """Squared error, averaged over the outputs."""
    CUSTOM = "custom"
    """What the caller's ``loss_fn`` says."""


BY_TOKEN = frozenset({LossKind.CAUSAL_LM, LossKind.SEQ2SEQ_LM})


@dataclass(frozen=True)
class Loss:
    """A loss per example.

    Attributes:
        kind: What it is.
        loss_fn: The caller's own function, for ``LossKind.CUSTOM``.
        head: The head of a language model that `per_example_from_hidden` can be used with.
    """

    kind: LossKind
    loss_fn: LossFn | None = None
    head: LargeHead | None = None

    def count_labels(self, batch: Mapping[str, Any], n_examples: int) -> Int[Tensor, " N"]:
        """Count what each example contributes to the mean over the batch.

        Args:
            batch: The batch, with ``labels`` unless the loss is the caller's own.
            n_examples: Its number of examples.

        Returns:
            Labels per example; 0 for an example that carries none.
        """
        if self.loss_fn is not None:
            return torch.ones(n_examples, dtype=torch.long)
        return count_labels(batch["labels"], self.kind)

    def per_example(
        self, outputs: Any, batch: Mapping[str, Any], where: str = "the batch"
    ) -> Tensor:
        """Evaluate the loss of every example.

        Args:
            outputs: What the model returned.
            batch: The batch it was given.
            where: What to call it in an error.

        Returns:
            One loss per example, unless the caller's own function gives something else.
        """
        if self.loss_fn is not None:
            return self.loss_fn(outputs, batch)
        logits = logits_of(outputs)
        check_labels(batch["labels"], logits.shape[-1], self.kind, where)
        return per_example_loss(logits, batch["labels"], self.kind)

    def per_example_from_hidden(
        self,
        hidden: Float[Tensor, "N T H"],
        batches: Sequence[Mapping[str, Any]],
        where: str = "the batch",
    ) -> tuple[Float[Tensor, " N"], ...]:
        """Evaluate the loss of every example without the logits of all its tokens.

        Args:
            hidden: What the head is given.
            batches: The batch the model was given, and the same with other labels at the
                same places.
            where: What to call it in an error.

        Returns:
            One loss per example for each of them, as `per_example` gives it from the head's
            logits.
        """
        assert self.head is not None
        for batch in batches:
            check_labels(batch["labels"], self.head.linear.out_features, self.kind, where)
        labels = [batch["labels"] for batch in batches]
        return _token_losses_behind(self.head, hidden, labels, self.kind)


def logits_of(outputs: Any) -> Tensor:
    """Find the logits in what a model returned.

    Returns:
        The logits.
    """
    logits: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return logits


def choose_loss(
    model: nn.Module,
    batch: Mapping[str, Any],
    loss_fn: LossFn | None,
    *,
    chunk_sizes: ChunkSizes = CHUNK_SIZES,
) -> Loss:
    """Find out which loss the model is trained with.

    Args:
        model: The model, wrapped by PEFT or not.
        batch: A batch; its labels tell classes from numbers.
        loss_fn: The caller's own loss, if there is one.
        chunk_sizes: Behind which heads losses are taken in chunks, and how large these are.

    Returns:
        The loss.

    Raises:
        InvalidOption: The batch has no labels, or the model's kind is not known.
        UnsupportedModule: The model is an encoder-decoder that reads no labels.
    """  # noqa: DOC502 - the helper raises
    if loss_fn is not None:
        return Loss(LossKind.CUSTOM, loss_fn)
    base = base_model_of(model)
    config, kind = getattr(base, "config", None), type(base).__name__
    if not isinstance(batch.get("labels"), Tensor):
        raise InvalidOption(f"the batch has no tensor 'labels', only {sorted(batch)}")
    if "ForSequenceClassification" in kind:
        return Loss(_classification_kind(config, batch["labels"]))
    token_kind = _language_model_kind(base)
    head = find_large_head(base, chunk_sizes)
    return Loss(token_kind, head=head)


def _language_model_kind(model: nn.Module) -> LossKind:
    """Tell which tokens a language model predicts.

    Returns:
        The kind of its loss.

    Raises:
        InvalidOption: It is no language model.
        UnsupportedModule: It is an encoder-decoder that reads no labels.
    """
    config, kind = getattr(model, "config", None), type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        if hasattr(model, "prepare_decoder_input_ids_from_labels"):
            return LossKind.SEQ2SEQ_LM
        raise UnsupportedModule(
            f"{kind} is an encoder-decoder that does not say how its decoder reads labels; "
            "give a loss_fn to measure it"
        )
    if "ForCausalLM" in kind or "LMHeadModel" in kind or "ForConditionalGeneration" in kind:
        return LossKind.CAUSAL_LM
    raise InvalidOption(
        f"the loss of {kind} is not known: use a ForSequenceClassification or ForCausalLM "
        "model, or give a loss_fn that returns one loss per example"
    )


def _classification_kind(config: Any, labels: Tensor) -> LossKind:
    """Decide as transformers does, without writing the answer into the model's config."""
    if config.problem_type is not None:
        return LossKind(config.problem_type)
    if config.num_labels == 1:
        return LossKind.REGRESSION
    return LossKind.MULTI_LABEL if labels.is_floating_point() else LossKind.SINGLE_LABEL


def count_labels(labels: Tensor, kind: LossKind) -> Int[Tensor, " N"]:
    """Count the labels of each example that enter its loss.

    Args:
        labels: Labels as the model takes them; -100 stands for none.
        kind: How they are read.

    Returns:
        Labels per example; always 1 where an example has one target.
    """
    if kind in BY_TOKEN:
        return (predicted(labels, kind) != IGNORED).sum(dim=1)
    if kind is LossKind.SINGLE_LABEL:
        return (labels.flatten() != IGNORED).long()
    return labels.new_ones(labels.shape[0]).long()


def predicted(labels: Tensor, kind: LossKind) -> Tensor:
    """Leave out the labels that no position of a causal language model predicts.

    Args:
        labels: As the model takes them.
        kind: How they are read.

    Returns:
        The label of each position, or of each example.
    """
    return labels[:, 1:] if kind is LossKind.CAUSAL_LM else labels


def check_labels(labels: Tensor, n_classes: int, kind: LossKind, where: str) -> None:
    """Refuse labels that are no class; on a GPU they would end the process.

    Args:
        labels: As the model takes them. What is not on the CPU is not looked at, as that
            would wait for the device.
        n_classes: Classes or tokens that the model tells apart.
        kind: How labels are read.
        where: What to call the batch in an error.

    Raises:
        InvalidOption: One is out of range.
    """
    if labels.device.type != "cpu" or kind not in {*BY_TOKEN, LossKind.SINGLE_LABEL}:
        return
    labels = predicted(labels, kind)
    is_wrong = (labels != IGNORED) & ((labels < 0) | (labels >= n_classes))
    if is_wrong.any():
        raise InvalidOption(
            f"label {labels[is_wrong][0].item()} in {where} is out of range: the model's "
            f"labels go from 0 to {n_classes - 1}, and {IGNORED} stands for none"
        )


def per_example_loss(logits: Tensor, labels: Tensor, kind: LossKind) -> Float[Tensor, " N"]:
    """Evaluate each example's mean loss over its own labels.

    Args:
        logits: (N C), or (N T V) for a language model.
        labels: As the model takes them. They may stay on the CPU when the logits are not:
            what is labelled is then known without waiting for the device.
        kind: How they are read.

    Returns:
        One loss per example in float32 at least; 0 for an example without labels.
    """
    if kind in BY_TOKEN:
        return _token_loss(logits, labels, kind)
    logits = logits if logits.element_size() >= 4 else logits.float()
    if kind is LossKind.SINGLE_LABEL:
        return functional.cross_entropy(
            logits, labels.flatten().to(logits.device), ignore_index=IGNORED, reduction="none"
        )
    outputs = logits.reshape(logits.shape[0], -1)
    wanted = labels.reshape(outputs.shape).to(outputs)
    if kind is LossKind.MULTI_LABEL:
        losses = functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
    else:
        losses = functional.mse_loss(outputs, wanted, reduction="none")
    return losses.mean(dim=1)


def _token_loss(
    logits: Float[Tensor, "N T V"], labels: Int[Tensor, "N T"], kind: LossKind
) -> Float[Tensor, " N"]:
    rows, columns, wanted, counts = _predicted(labels, kind, logits.device)
    picked = logits[rows, columns]  # only positions that have a label become float32
    picked = picked if picked.element_size() >= 4 else picked.float()
    losses = functional.cross_entropy(picked, wanted, reduction="none")
    return losses.new_zeros(len(labels)).index_add(0, rows, losses) / counts


def _token_losses_behind(
    head: LargeHead,
    hidden: Float[Tensor, "N T H"],
    labels: Sequence[Int[Tensor, "N T"]],
    kind: LossKind,
) -> tuple[Float[Tensor, " N"], ...]:
    rows, columns, wanted, counts = _predicted(labels[0], kind, hidden.device)
    others = [_predicted(some, kind, hidden.device)[2] for some in labels[1:]]
    return token_losses(head, hidden[rows, columns], [wanted, *others], rows, counts)


def _predicted(
    labels: Int[Tensor, "N T"], kind: LossKind, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows and columns of tokens that have a label, the labels, and each row's number of them."""
    targets = predicted(labels, kind)
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    counts = count_labels(labels, kind).clamp_min(1)
    found = (rows, columns, targets[rows, columns], counts)
    return tuple(tensor.to(device, non_blocking=True) for tensor in found)  # type: ignore[return-value]
