"""How much memory measuring needs, roughly: the engine's own rule, without torch.

Symbols: b bytes of a number in the dtype of the run, N tokens of one example, F numbers that
go into a model's linear maps and come out of them per token (its features).

- weights: all parameters times b; 4 bytes for an element of packed, quantised weights
- recorded: what a rule asks for beside the energies, of all modules or of one block's
- resident: 1.05 (weights + recorded + N F b), the least with which one example can run
- streamed: two blocks' weights, or one block's and the largest tensor outside of blocks if
  that is more; with the features and what is recorded of one block, and 1 GiB for the rest
- boundary: the inputs of L blocks and the head for all examples, ``n_examples (L + 1) N h b``
  with h the hidden width; in host memory, or on disk where they do not fit
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fimlora_contract.requests import Calibration
from fimlora_jobs.dtypes import BYTES
from fimlora_service.calibrations.checkpoint_sizes import Checkpoint, is_packed
from fimlora_service.calibrations.recorded import NOTHING, Recorded
from fimlora_service.resolve.target_checks import WIDTHS, largest_number

MARGIN = 1.05
OVERHEAD_BYTES = 1 << 30
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


def demand_of(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    calibration: Calibration,
    *,
    dtype: str,
    recorded: Recorded = NOTHING,
) -> Demand:
    """Bytes by the rules above."""
    size = BYTES[dtype]
    weight_size = 4 if is_packed(config) else size
    n_tokens = min(calibration.max_length, find(config, POSITIONS) or calibration.max_length)
    n_examples = calibration.n_batches * calibration.batch_size
    weights, block = checkpoint.parameters * weight_size, checkpoint.largest_block
    loaded = (block + max(block, checkpoint.largest_other)) * weight_size
    inputs = (checkpoint.n_blocks + 1) * n_tokens * find(config, WIDTHS)
    return Demand(
        weights=weights,
        resident=round(
            MARGIN * (weights + recorded.whole + checkpoint.features * n_tokens * size)
        ),
        streamed=loaded
        + recorded.block
        + checkpoint.block_features * n_tokens * size
        + OVERHEAD_BYTES,
        boundary=n_examples * inputs * size,
    )


def find(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    """The largest number under any of some keys, within reason; 0 if there is none."""
    found = max(largest_number(config, key) for key in keys)
    return max(0, min(found, LARGEST))
