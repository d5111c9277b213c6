"""How much memory measuring needs, roughly, from a model's configuration and weight heads.

Symbols: N tokens per batch, h hidden width, f width inside an MLP, V vocabulary, L blocks,
b bytes of a number in the dtype of the run.

- weights: all parameters times b; 4 bytes for an element of packed, quantised weights
- activations of one block: ``N (8 h + 3 f) b``: what a frozen block keeps for the backward
  pass, with its inputs, attention and MLP; attention scores themselves are not kept
- logits of a language model: ``N V (b + 8)``, with their float32 copy and its gradient
- resident: weights + L blocks' activations + logits + overhead
- streamed: the larger of two blocks' weights, and one block's plus the largest other tensor;
  one block's activations + logits + overhead
- boundary: each block's inputs for all batches, ``n_batches (L + 1) N h b``, in host memory
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fimlora_contract.requests import Calibration
from fimlora_service.checkpoints import Checkpoint
from fimlora_service.targets import WIDTHS, largest_number

OVERHEAD_BYTES = 1 << 30  # libraries, the device's context, the allocator's reserve
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
INNER_WIDTHS = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim")
POSITIONS = ("max_position_embeddings", "n_positions")
LARGEST = 1 << 40  # no honest configuration states more


@dataclass(frozen=True, slots=True)
class Demand:
    """Bytes that measuring needs.

    Attributes:
        weights: Of the whole model.
        resident: On the device, with the whole model there.
        streamed: On the device, with one block at a time.
        boundary: In host memory or on disk while streaming.
    """

    weights: int
    resident: int
    streamed: int
    boundary: int


def choose_dtype(wanted: str, config: Mapping[str, Any], *, device: str) -> str:
    """The dtype a worker would run in; the same rule as the worker's."""
    if wanted != "auto":
        return wanted
    if device == "cpu":
        return "float32"
    own = config.get("dtype") or config.get("torch_dtype")
    return own if isinstance(own, str) and own in BYTES else "bfloat16"


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether the weights are quantised, so that their shapes are not those of the maps."""
    return bool(config.get("quantization_config"))


def demand_of(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    calibration: Calibration,
    *,
    dtype: str,
    has_logits: bool,
) -> Demand:
    """Bytes by the formula above."""
    size = BYTES[dtype]
    weight_size = 4 if is_packed(config) else size
    positions = find(config, POSITIONS) or calibration.max_length
    tokens = calibration.batch_size * min(calibration.max_length, positions)
    hidden = find(config, WIDTHS)
    inner = find(config, INNER_WIDTHS) or 4 * hidden
    block = tokens * (8 * hidden + 3 * inner) * size
    logits = tokens * find(config, ("vocab_size",)) * (size + 8) if has_logits else 0
    weights = checkpoint.parameters * weight_size
    loaded = checkpoint.largest_block + max(checkpoint.largest_block, checkpoint.largest_other)
    return Demand(
        weights=weights,
        resident=weights + checkpoint.n_blocks * block + logits + OVERHEAD_BYTES,
        streamed=loaded * weight_size + block + logits + OVERHEAD_BYTES,
        boundary=calibration.n_batches * (checkpoint.n_blocks + 1) * tokens * hidden * size,
    )


def find(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    """The largest number under any of some keys, within reason; 0 if there is none."""
    found = max(largest_number(config, key) for key in keys)
    return max(0, min(found, LARGEST))
