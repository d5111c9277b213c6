"""Token losses straight from what the output head sees, a few tokens' logits at a time.

Symbols: N examples, T tokens, M tokens with a label, H hidden features, V vocabulary.

With a large vocabulary the logits of a batch outweigh all else in it. Only tokens that have
a label need any, so the head is applied to these, in chunks: each chunk's losses and the
gradient of its hidden states are taken while its logits exist.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fimlora.measuring.examples.large_head import LargeHead
from fimlora.shapes import Float, Int


def token_losses(
    head: LargeHead,
    hidden: Float[Tensor, "M H"],
    wanted: Sequence[Int[Tensor, " M"]],
    rows: Int[Tensor, " M"],
    counts: Int[Tensor, " N"],
) -> tuple[Float[Tensor, " N"], ...]:
    """Evaluate each example's mean loss over its labels, once for every choice of labels.

    Args:
        head: The output head.
        hidden: What the head is given for the tokens that have a label.
        wanted: Their labels, and other labels to compare the same logits with.
        rows: The examples they belong to.
        counts: Labels of each example, at least 1.

    Returns:
        One loss per example for each choice, in float32 at least. Their graph holds the
        gradients of the hidden states and no logits.
    """
    apply: Callable[..., tuple[Tensor, ...]] = _ChunkedLoss.apply
    return apply(hidden, head, rows, counts, *wanted)


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropy behind the head; differentiable once, with respect to the hidden states."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: LargeHead,
        rows: Tensor,
        counts: Tensor,
        *wanted: Tensor,
    ) -> tuple[Tensor, ...]:
        weights = (1 / counts.to(torch.promote_types(hidden.dtype, torch.float32)))[rows]
        losses, gradients = _by_chunk(
            head, hidden, wanted, weights, with_gradient=hidden.requires_grad
        )
        ctx.set_materialize_grads(False)  # losses are differentiated one after the other
        ctx.n_choices = len(wanted)
        if hidden.requires_grad:
            ctx.save_for_backward(rows, *gradients)
        return tuple(
            some.new_zeros(len(counts)).index_add(0, rows, some) / counts for some in losses
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        rows, *of_hidden = ctx.saved_tensors
        parts = [
            some * gradient[rows, None].to(some.dtype)
            for some, gradient in zip(of_hidden, gradients, strict=True)
            if gradient is not None
        ]
        return sum(parts[1:], parts[0]), None, None, None, *[None] * ctx.n_choices


def _by_chunk(
    head: LargeHead,
    hidden: Tensor,
    wanted: Sequence[Tensor],
    weights: Tensor,
    *,
    with_gradient: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Losses and gradients of all tokens for each choice, one chunk after the other."""
    found = [
        _losses_and_gradients(head, *chunk, with_gradient=with_gradient)
        for chunk in zip(
            *(tokens.split(head.chunk_tokens) for tokens in (hidden, weights)),
            zip(*(tokens.split(head.chunk_tokens) for tokens in wanted), strict=True),
            strict=True,
        )
    ]
    losses, gradients = zip(*found, strict=True)
    return _joined(losses), _joined(gradients) if with_gradient else []


def _losses_and_gradients(
    head: LargeHead,
    hidden: Tensor,
    weights: Tensor,
    wanted: Sequence[Tensor],
    *,
    with_gradient: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Losses of some tokens, and the gradients of their weighted sums; the logits go."""
    hidden = hidden.detach().requires_grad_(with_gradient)
    with torch.enable_grad():
        logits = head.follow(functional.linear(hidden, head.linear.weight, head.linear.bias))
        logits = logits if logits.element_size() >= 4 else logits.float()
        losses = [functional.cross_entropy(logits, some, reduction="none") for some in wanted]
        del logits  # the graph has what it needs of them
        if not with_gradient:
            return losses, []
        gradients = [
            torch.autograd.grad(some, hidden, weights, retain_graph=number < len(losses))[0]
            for number, some in enumerate(losses, 1)
        ]
    return [some.detach() for some in losses], gradients


def _joined(by_chunk: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Join the chunks of each choice."""
    return [torch.cat(chunks) for chunks in zip(*by_chunk, strict=True)]
