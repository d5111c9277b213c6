"""Find an output head that losses can be taken behind without the logits of all tokens.

Symbols: H hidden features, V vocabulary.

Such a head is a plain linear map that nobody watches, and what the model does to its output
is one of a few known functions. That is not read from the model's code: its own forward pass
is run around a head and a backbone that are stood in for, and must have done just that.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from fimlora.shapes import Float

Follow = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChunkSizes:
    """Which heads are large, and for how many tokens at once their logits exist.

    Attributes:
        min_vocabulary: A smaller head costs less than the trouble.
        n_logits: So many, 16 MB in float32, stay in a CPU's cache.
        min_tokens: With fewer tokens at a time, reading the head's weight takes longer than
            using it.
    """

    min_vocabulary: int = 4096
    n_logits: int = 4 * 2**20
    min_tokens: int = 256

    def n_tokens(self, vocabulary: int) -> int:
        """Say how many tokens make a chunk behind a head of this size."""
        return max(self.min_tokens, self.n_logits // vocabulary)


CHUNK_SIZES = ChunkSizes()


@dataclass(frozen=True)
class LargeHead:
    """The output head of a language model.

    Attributes:
        linear: The head.
        follow: What the model turns the head's output into logits with.
        chunk_tokens: For how many tokens at once logits exist.
    """

    linear: nn.Linear
    follow: Follow
    chunk_tokens: int


def find_large_head(model: Any, sizes: ChunkSizes = CHUNK_SIZES) -> LargeHead | None:
    """Find a head whose losses can be taken in chunks.

    Args:
        model: A language model of transformers, causal or an encoder-decoder, not wrapped.
        sizes: Which heads are large, and the chunks behind them.

    Returns:
        The head; ``None`` where it is small, is not a plain linear map, is watched by
        anybody, or is followed by something unknown. All logits are taken then.
    """
    linear = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(linear) is not nn.Linear or linear.out_features < sizes.min_vocabulary:
        return None
    follow = _find_follow(model, linear) if _is_plain(linear) else None
    if follow is None:
        return None
    return LargeHead(linear, follow, sizes.n_tokens(linear.out_features))


def _is_plain(linear: nn.Linear) -> bool:
    """Whether its product is all that it does, and nobody wants to see it."""
    # Hooks want the real output; a forward of its own (a streamed block, offloading) may too.
    is_watched = linear._forward_hooks or "forward" in vars(linear)  # noqa: SLF001
    is_plain = type(linear.weight.data) is Tensor and linear.weight.is_floating_point()
    return is_plain and not is_watched


def _find_follow(model: Any, linear: nn.Linear) -> Follow | None:
    """Find what a model does to the output of its head."""
    output = _output_of(linear)
    try:
        seen = _run_around(model, linear, output)
        known = (f for f in _known_functions(model) if torch.equal(seen, f(output)))
        return next(known, None)
    except Exception:  # whatever it is that such a model misses, it is not a plain one
        return None


def _output_of(linear: nn.Linear) -> Float[Tensor, "1 1 V"]:
    """Make up an output that tells functions apart."""
    weight = linear.weight
    device = torch.device("cpu") if weight.is_meta else weight.device
    return torch.linspace(-60, 60, linear.out_features, dtype=weight.dtype, device=device)[
        None, None
    ]


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


def _run_around(model: Any, linear: nn.Linear, output: Float[Tensor, "1 1 V"]) -> Tensor:
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
    hidden = _Hidden(last_hidden_state=output.new_zeros(1, 2, linear.in_features))
    stand_ins = {part: _StandIn(hidden) for part in _backbone(model)}
    stand_ins[linear] = _HeadStandIn(output)
    with torch.no_grad(), _replaced(model, stand_ins):
        # Not through hooks that others may have on the model.
        logits: Tensor = model.forward(**_two_tokens(model, output.device))["logits"]
    if any(stand_in.n_calls != 1 for stand_in in stand_ins.values()):
        raise RuntimeError("backbone and head are not called once each")
    return logits


def _two_tokens(model: Any, device: torch.device) -> dict[str, Tensor]:
    """The least that a model can be given."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    inputs = {"input_ids": ids, "attention_mask": ids + 1}
    return inputs | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})


def _backbone(model: Any) -> tuple[nn.Module, ...]:
    """Name what is below the head: one module, or an encoder and a decoder (T5)."""
    whole = getattr(model, model.base_model_prefix, None)
    return (whole,) if whole is not None else (model.encoder, model.decoder)


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


class _StandIn(nn.Module):
    """Stands where a module was, and returns what it is told to."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output, self.n_calls = output, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - whatever comes
        self.n_calls += 1
        return self.output


class _HeadStandIn(_StandIn):
    """Takes one positional argument only, as `hooks.without_tokens` wants it."""

    def forward(self, hidden: Tensor, /) -> Any:
        return super().forward(hidden)


@contextmanager
def _replaced(model: nn.Module, stand_ins: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """Put modules in the place of others, wherever those are, inside the block."""
    with ExitStack() as stack:
        for owner in list(model.modules()):
            for name, child in list(owner.named_children()):
                if child in stand_ins:
                    setattr(owner, name, stand_ins[child])
                    stack.callback(setattr, owner, name, child)
        yield
