"""Token losses straight from what the output head sees, a few tokens' logits at a time.

Symbols: N examples, T tokens, M tokens with a label, H hidden features, V vocabulary.

With a large vocabulary the logits of a batch outweigh all else in it. Only tokens that have
a label need any, so the head is applied to these, in chunks: each chunk's losses and the
gradient of its hidden states are taken while its logits exist.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fimlora.measuring.examples.large_head import LargeHead
from fimlora.shapes import Float, Int


def token_losses(
    head: LargeHead,
    hidden: Float[Tensor, "M H"],
    wanted: Int[Tensor, " M"],
    rows: Int[Tensor, " M"],
    counts: Int[Tensor, " N"],
) -> Float[Tensor, " N"]:
    """Evaluate each example's mean loss over its labels.

    Args:
        head: The output head.
        hidden: What the head is given for the tokens that have a label.
        wanted: Their labels.
        rows: The examples they belong to.
        counts: Labels of each example, at least 1.

    Returns:
        One loss per example, in float32 at least. Its graph holds the gradient of the
        hidden states and no logits.
    """
    apply: Callable[..., Tensor] = _ChunkedLoss.apply
    return apply(hidden, head, wanted, rows, counts)


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropy behind the head; differentiable once, with respect to the hidden states."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: LargeHead,
        wanted: Tensor,
        rows: Tensor,
        counts: Tensor,
    ) -> Tensor:
        weights = (1 / counts.to(torch.promote_types(hidden.dtype, torch.float32)))[rows]
        losses, gradients = _by_chunk(
            head, hidden, wanted, weights, with_gradient=hidden.requires_grad
        )
        if hidden.requires_grad:
            ctx.save_for_backward(torch.cat(gradients), rows)
        joined = torch.cat(losses)
        return joined.new_zeros(len(counts)).index_add(0, rows, joined) / counts

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        of_hidden, rows = ctx.saved_tensors
        factors = gradients[0][rows, None].to(of_hidden.dtype)
        return of_hidden * factors, None, None, None, None


def _by_chunk(
    head: LargeHead, hidden: Tensor, wanted: Tensor, weights: Tensor, *, with_gradient: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Losses and gradients of all tokens, one chunk after the other."""
    chunks = zip(
        *(tokens.split(head.chunk_tokens) for tokens in (hidden, wanted, weights)), strict=True
    )
    found = [_loss_and_gradient(head, *chunk, with_gradient=with_gradient) for chunk in chunks]
    return [loss for loss, _ in found], [gradient for _, gradient in found]


def _loss_and_gradient(
    head: LargeHead, hidden: Tensor, wanted: Tensor, weights: Tensor, *, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Losses of some tokens, and the gradient of their weighted sum; the logits go."""
    hidden = hidden.detach().requires_grad_(with_gradient)
    with torch.enable_grad():
        logits = head.follow(functional.linear(hidden, head.linear.weight, head.linear.bias))
        logits = logits if logits.element_size() >= 4 else logits.float()
        losses = functional.cross_entropy(logits, wanted, reduction="none")
        del logits  # the graph has what it needs of them
        if not with_gradient:
            return losses, hidden
        (gradient,) = torch.autograd.grad(losses, hidden, weights)
    return losses.detach(), gradient
