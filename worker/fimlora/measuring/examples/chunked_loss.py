"""Token losses straight from what the output head sees, a few tokens' logits at a time.

Symbols: N examples, T tokens, M tokens with a label, H hidden features, V vocabulary.

With a large vocabulary the logits of a batch outweigh all else in it. Only tokens that have
a label need any, so the head is applied to these, in chunks: each chunk's losses and the
gradient of its hidden states are taken while its logits exist.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from fimlora.shapes import Float, Int

# A smaller head costs less than the trouble.
_MIN_VOCABULARY = 4096
# Logits that exist at once, 16 MB in float32, stay in a CPU's cache; but with fewer tokens
# than that at a time, reading the head's weight takes longer than using it.
_CHUNK_ENTRIES = 4 * 2**20
_MIN_CHUNK_TOKENS = 256

Follow = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LargeHead:
    """The output head of a language model.

    Attributes:
        linear: The head.
        follow: What the model turns the head's output into logits with.
    """

    linear: nn.Linear
    follow: Follow


def find_large_head(model: Any) -> LargeHead | None:
    """Find a head whose losses can be taken in chunks.

    What the model does behind its head is known to be one of a few functions only after the
    model's own forward pass has been seen to do just that.

    Args:
        model: A language model of transformers, causal or an encoder-decoder, not wrapped.

    Returns:
        The head; ``None`` where it is small, is not a plain linear map, is watched by
        anybody, or is followed by something unknown. All logits are taken then.
    """
    linear = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(linear) is not nn.Linear or linear.out_features < _MIN_VOCABULARY:
        return None
    is_plain = type(linear.weight.data) is Tensor and linear.weight.is_floating_point()
    # Hooks want the real output; a forward of its own (a streamed block, offloading) may too.
    is_watched = linear._forward_hooks or "forward" in vars(linear)  # noqa: SLF001
    if not is_plain or is_watched:
        return None
    weight = linear.weight
    device = torch.device("cpu") if weight.is_meta else weight.device
    wide = torch.linspace(-60, 60, linear.out_features, dtype=weight.dtype, device=device)
    try:
        seen = _behind_head(model, linear, wide[None, None])
        known = (f for f in _known_functions(model) if torch.equal(seen, f(wide[None, None])))
        follow = next(known, None)
    except Exception:  # whatever it is that such a model misses, it is not a plain one
        return None
    return LargeHead(linear, follow) if follow is not None else None


def _known_functions(model: Any) -> Iterator[Follow]:
    """What models of transformers do to the output of their heads."""
    config = model.config.get_text_config()
    yield lambda logits: logits
    if (bias := getattr(model, "final_logits_bias", None)) is not None:  # BART and its like
        yield lambda logits: logits + bias.to(logits.device)
    if cap := getattr(config, "final_logit_softcapping", None):
        yield lambda logits: torch.tanh(logits / cap) * cap
        yield lambda logits: torch.tanh(logits.float() / cap) * cap
    if factor := getattr(config, "logit_scale", None):
        yield lambda logits: logits * factor
    if divisor := getattr(config, "logits_scaling", None):
        yield lambda logits: logits / divisor


@dataclass
class _Hidden(ModelOutput):
    """What the part of a model below its head gives; the rest of it is left out."""

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    cross_attentions: Any = None
    router_logits: Any = None
    decoder_hidden_states: Any = None
    decoder_attentions: Any = None
    encoder_last_hidden_state: Any = None
    encoder_hidden_states: Any = None
    encoder_attentions: Any = None


class _Stand(nn.Module):
    """Stands where a module was, and returns what it is told to."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output, self.n_calls = output, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - whatever comes
        self.n_calls += 1
        return self.output


class _HeadStand(_Stand):
    """Takes one positional argument only, as `hooks.without_tokens` wants it."""

    def forward(self, hidden: Tensor, /) -> Any:
        return super().forward(hidden)


def _behind_head(model: Any, linear: nn.Linear, output: Float[Tensor, "1 1 V"]) -> Tensor:
    """Run what a model does around its backbone and head, without running these.

    Args:
        model: The model.
        linear: Its head.
        output: What the head is to return.

    Returns:
        What the model returns as logits.

    Raises:
        RuntimeError: It is a model of another kind.
    """
    hidden = output.new_zeros(1, 2, linear.in_features)
    parts = {part: _Stand(_Hidden(last_hidden_state=hidden)) for part in _backbone(model)}
    parts[linear] = _HeadStand(output)
    ids = torch.zeros(1, 2, dtype=torch.long, device=output.device)
    inputs = {"input_ids": ids, "attention_mask": ids + 1}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad(), ExitStack() as stack:
        for part, stand in parts.items():
            stack.enter_context(_replaced(model, part, stand))
        # Not through hooks that others may have on the model.
        logits: Tensor = model.forward(**inputs)["logits"]
    if any(stand.n_calls != 1 for stand in parts.values()):
        raise RuntimeError("backbone and head are not called once each")
    return logits


def _backbone(model: Any) -> tuple[nn.Module, ...]:
    """Name what is below the head: one module, or an encoder and a decoder (T5)."""
    whole = getattr(model, model.base_model_prefix, None)
    return (whole,) if whole is not None else (model.encoder, model.decoder)


@contextmanager
def _replaced(model: nn.Module, part: nn.Module, stand: nn.Module) -> Iterator[None]:
    """Put a module in the place of another, wherever that is, inside the block."""
    with ExitStack() as stack:
        for owner in list(model.modules()):
            for name, child in list(owner.named_children()):
                if child is part:
                    setattr(owner, name, stand)
                    stack.callback(setattr, owner, name, part)
        yield


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
        size = max(_MIN_CHUNK_TOKENS, _CHUNK_ENTRIES // head.linear.out_features)
        weights = (1 / counts.to(torch.promote_types(hidden.dtype, torch.float32)))[rows]
        losses, gradients = [], []
        for some in zip(
            hidden.split(size), wanted.split(size), weights.split(size), strict=True
        ):
            loss, gradient = _loss_and_gradient(head, *some, with_gradient=hidden.requires_grad)
            losses.append(loss)
            gradients.append(gradient)
        if hidden.requires_grad:
            ctx.save_for_backward(torch.cat(gradients), rows)
        joined = torch.cat(losses)
        return joined.new_zeros(len(counts)).index_add(0, rows, joined) / counts

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        of_hidden, rows = ctx.saved_tensors
        factors = gradients[0][rows, None].to(of_hidden.dtype)
        return of_hidden * factors, None, None, None, None


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
