"""Whether the numbers of a ``config.json`` can be those of a model at all.

Service and worker ask the same: the service so that nothing absurd is queued, the worker so
that it builds nothing that takes its time or memory before the first weight is missed.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fimlora_jobs.models.config_parts import MAX_DEPTH, depth_of, parts_of, text_parts
from fimlora_jobs.models.refusal import ModelRefused

# Whole numbers of at least one, wherever they stand, or null where the family has a default.
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads")
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim")
SIZES = (
    *LAYERS, *HEADS, *WIDTHS, "encoder_layers", "decoder_layers", "num_decoder_layers",
    "num_key_value_heads", "head_dim", "d_kv", "intermediate_size", "d_ff", "ffn_dim",
    "vocab_size", "max_position_embeddings", "n_positions", "embedding_size",
)  # fmt: skip
# Some families have one of these for each layer.
PER_LAYER = frozenset({"num_attention_heads", "num_key_value_heads", "intermediate_size"})
# A part without layers, or without a table of positions, is one that is not used.
MAY_BE_ZERO = frozenset({"max_position_embeddings", "n_positions", "intermediate_size"})
# Above what any model has, and low enough to be built without weights in a moment.
LARGEST = {"max_position_embeddings": 1 << 25, "n_positions": 1 << 25}
LARGEST_SIZE = 1 << 28
MOST_LABELS = 1 << 20  # each gets a name, from number to number
REPEATS = re.compile(r"(layers?|depths?|blocks|experts|groups)$")
MOST_REPEATS = 1_000
MOST_EXPERTS = 1 << 15  # some mixtures keep that many in one tensor
SHARE = re.compile(r"(dropout|dropout_prob|dropout_rate|_pdrop|_drop)$")
# Keys under which families state the width of a head by itself.
HEAD_WIDTH = re.compile(r"head_dim|head_size|d_head|dim_head|d_kv|kv_channels|qk_")
REFUSE_TO_ROUND = frozenset({"llama"})
DTYPES = frozenset({"auto", "float64", "float32", "float", "float16", "half", "bfloat16"})


def check_numbers(config: Mapping[str, Any], *, n_tensors: int | None = None) -> None:
    """Refuse a configuration that no model can have.

    Args:
        config: The content of a ``config.json``.
        n_tensors: How many tensors its checkpoint has; ``None`` where that is not known.

    Raises:
        ModelRefused: Names the field, what it says and what is allowed.
    """
    if depth_of(config) > MAX_DEPTH:
        raise ModelRefused(f"its config.json is nested over {MAX_DEPTH} levels deep")
    for part in parts_of(config):
        _check_type(part)
        _check_sizes(part)
        _check_labels(part)
        _check_repeats(part, n_tensors)
        _check_finite(part)
        _check_dtype(part)
        _check_shares(part)
    for part in text_parts(config):
        _check_not_empty(part)
        _check_division(part)
        _check_layer_types(part)
        _check_pad_id(part)


def _check_type(part: Mapping[str, Any]) -> None:
    kind = part.get("model_type", "")
    if not isinstance(kind, str):
        raise _wrong("model_type", kind, "the name of a family of transformers")


def _check_shares(part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        # Truth values and null are also ways to say that nothing is dropped.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if SHARE.search(key) and is_number and not 0 <= value <= 1:
            raise _wrong(key, value, "a share between 0 and 1")


def _check_sizes(part: Mapping[str, Any]) -> None:
    for key in SIZES:
        for value in _listed(part.get(key), key):
            most = LARGEST.get(key, LARGEST_SIZE)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
                raise _wrong(key, value, f"a whole number from 1 to {most}")


def _listed(value: Any, key: str) -> list[Any]:
    # Some name layers by kind of input; what such a family says is its own affair.
    if value is None or isinstance(value, Mapping):
        return []
    if isinstance(value, list) and key in PER_LAYER:
        return [entry for entry in value if entry is not None]
    return [value]


def _check_labels(part: Mapping[str, Any]) -> None:
    value = part.get("num_labels")
    if value is not None and (type(value) is not int or not 0 <= value <= MOST_LABELS):
        raise _wrong("num_labels", value, f"a whole number up to {MOST_LABELS}")


def _check_not_empty(part: Mapping[str, Any]) -> None:
    for key in SIZES:
        if part.get(key) == 0 and key not in MAY_BE_ZERO:
            raise _wrong(key, 0, "at least 1")


def _check_repeats(part: Mapping[str, Any], n_tensors: int | None) -> None:
    """Layers or experts by the million would take a worker's time before one is missed."""
    for key, value in part.items():
        allowed = MOST_EXPERTS if key.endswith("experts") else MOST_REPEATS
        most = max(allowed, n_tensors or 0)
        if REPEATS.search(key) and isinstance(value, int) and value > most:
            has = "" if n_tensors is None else f"; its checkpoint has {n_tensors} tensors"
            raise ModelRefused(f"its config.json asks for {key}={_shown(value)}{has}")


def _check_finite(part: Mapping[str, Any]) -> None:
    # Lists may end in Infinity: the steps of state-space models have no upper limit.
    for key, value in part.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise _wrong(key, value, "a finite number")


def _check_dtype(part: Mapping[str, Any]) -> None:
    for key in ("dtype", "torch_dtype"):
        value = part.get(key)
        name = value.removeprefix("torch.") if isinstance(value, str) else value
        if value is not None and (not isinstance(name, str) or name not in DTYPES):
            raise _wrong(key, value, f"one of {sorted(DTYPES)}")


def _check_division(part: Mapping[str, Any]) -> None:
    width, heads = _first(part, WIDTHS), _first(part, HEADS)
    # Families with shared heads mostly round down, and project to as much as that gives.
    rounds = part.get("model_type") not in REFUSE_TO_ROUND
    says_itself = (rounds and "num_key_value_heads" in part) or any(
        HEAD_WIDTH.search(key) and value for key, value in part.items()
    )
    if width and heads and width[1] % heads[1] and not says_itself:
        raise ModelRefused(
            f"its config.json has {width[0]}={width[1]}, which {heads[0]}={heads[1]} does not "
            "divide"
        )
    shared = part.get("num_key_value_heads")
    if heads and isinstance(shared, int) and shared and heads[1] % shared:
        raise ModelRefused(
            f"its config.json has {heads[0]}={heads[1]}, which num_key_value_heads={shared} "
            "does not divide"
        )


def _first(part: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, int] | None:
    found: Iterator[tuple[str, int]] = (
        (key, part[key]) for key in keys if isinstance(part.get(key), int) and part[key]
    )
    return next(found, None)


def _check_layer_types(part: Mapping[str, Any]) -> None:
    types, n_layers = part.get("layer_types"), part.get("num_hidden_layers")
    if types is None:
        return
    if not isinstance(types, list) or not all(isinstance(kind, str) for kind in types):
        raise _wrong("layer_types", types, "a list of names, one for each layer")
    if isinstance(n_layers, int) and len(types) != n_layers:
        raise ModelRefused(
            f"its config.json has layer_types of {len(types)} layers and "
            f"num_hidden_layers={n_layers}"
        )


def _check_pad_id(part: Mapping[str, Any]) -> None:
    pad_id, n_tokens = part.get("pad_token_id"), part.get("vocab_size")
    if pad_id is None:
        return
    if isinstance(pad_id, bool) or not isinstance(pad_id, int):
        raise _wrong("pad_token_id", pad_id, "a whole number or null")
    # Some embeddings have one row more, for padding.
    if isinstance(n_tokens, int) and not -n_tokens <= pad_id <= n_tokens:
        raise ModelRefused(
            f"its config.json has pad_token_id={_shown(pad_id)}, outside its vocab_size={n_tokens}"
        )


def _wrong(key: str, value: Any, allowed: str) -> ModelRefused:
    return ModelRefused(f"its config.json has {key}={_shown(value)}; allowed is {allowed}")


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 200:  # longer, it may not be written
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."
