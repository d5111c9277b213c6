"""How much memory measuring needs, roughly: by the engine's own rule, of headers alone.

Symbols: b bytes of a number in the dtype of the run, N tokens of one example, F numbers that
go into a model's linear maps and come out of them per token (its features).

- weights: all parameters times b; quantised ones as what they stand for, as they are measured so
- recorded: what a method asks for beside the energies, of all modules or of one block's
- resident: with these and N F b of one example, the least with which it can run
- streamed: two blocks' weights, or one block's and the largest tensor outside of blocks if
  that is more; with the features and what is recorded of one block, and 1 GiB for the rest
- boundary: the inputs of L blocks and the head for all examples, ``n_examples (L + 1) N h b``
  with h the hidden width; in host memory, or on disk where they do not fit

A run that goes forward only has the features of a few maps, and the inputs of one block; one that
reads no example has neither.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fimlora.adapter.initial.registry import init_records
from fimlora.memory.need import MemoryNeed, bytes_recorded
from fimlora.methods.registry import needs_null, passes_needed, records_needed
from fimlora.plan import TargetModule
from fimlora.statistics.options import Passes, Record
from fimlora_contract.calibrations import Calibration
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.dtypes import BYTES
from fimlora_service.calibrations.checkpoint_sizes import (
    Checkpoint,
    block_of,
    find_matrices,
    find_target_shapes,
)
from fimlora_service.resolve.model_files import Shapes
from fimlora_service.resolve.target_checks import WIDTHS, is_inner, largest_number

OVERHEAD_BYTES = 1 << 30
POSITIONS = ("max_position_embeddings", "n_positions")
LARGEST = 1 << 40  # no honest configuration states more


@dataclass(frozen=True, slots=True)
class RecordedBytes:
    """What a method has recorded beside the energies, on the device.

    Attributes:
        whole: With all target modules there.
        block: With those of one block at a time, of the block that takes most.
    """

    whole: int
    block: int


NOTHING = RecordedBytes(0, 0)


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
    recorded: RecordedBytes = NOTHING,
    passes: Passes = Passes.BACKWARD,
    n_shown: int = 0,
) -> Demand:
    """Bytes by the rules above, with so many positions for what a row shows beside its text."""
    size = BYTES[dtype]
    n_tokens = min(calibration.max_length, find(config, POSITIONS) or calibration.max_length)
    n_tokens += n_shown
    n_examples = calibration.most_batches * calibration.batch_size
    weights, block = checkpoint.parameters * size, checkpoint.largest_block
    loaded = (block + max(block, checkpoint.largest_other)) * size
    held, of_block, n_inputs = {
        Passes.BACKWARD: (
            checkpoint.features,
            checkpoint.block_features,
            checkpoint.n_blocks + 1,
        ),
        Passes.FORWARD: (checkpoint.forward_features, checkpoint.forward_features, 1),
        Passes.NONE: (0, 0, 0),
    }[passes]
    inputs = n_inputs * n_tokens * find(config, WIDTHS)
    return Demand(
        weights=weights,
        resident=MemoryNeed(
            weights, held * n_tokens * size, recorded_bytes=recorded.whole
        ).least,
        streamed=loaded + recorded.block + of_block * n_tokens * size + OVERHEAD_BYTES,
        boundary=n_examples * inputs * size,
    )


def recorded_at_point(request: CalibrationRequest, ranks: Mapping[str, int]) -> RecordedBytes:
    """What is recorded of a trained adapter, of these ranks by module."""
    modules = [TargetModule(name, 1, 1) for name in ranks]
    signal = request.calibration.signal
    whole = bytes_recorded(
        modules, {Record.ADAPTER_GRADIENTS}, null=signal, halves=signal, adapter_ranks=ranks
    )
    return RecordedBytes(whole, whole)


def recorded_bytes(
    request: CalibrationRequest, *, shapes: Shapes, config: Mapping[str, Any]
) -> RecordedBytes:
    """What the method of a request has recorded, and its initial weights.

    Where only the loaded model knows its targets, all inner matrices are counted. That is more
    than it takes, unless all need to be sketched and the targets do not.
    """
    record = records_needed(*request.methods_measured) | init_records(request.adapter.initial)
    if not record:
        return NOTHING
    matrices = find_target_shapes(request, shapes=shapes, config=config)
    if matrices is None:
        found = find_matrices(shapes)
        matrices = {name: sides for name, sides in found.items() if is_inner(name)}
    modules = [TargetModule(name, d_in, d_out) for name, (d_out, d_in) in matrices.items()]
    if request.target_parameters is not None:  # those that the checkpoint holds fused
        modules += [
            TargetModule(name, shape[1], shape[2], n_experts=shape[0])
            for name, shape in shapes.items()
            if len(shape) == 3 and "expert" in name
        ]
    blocks = defaultdict(list)
    for module in modules:
        blocks[block_of(module.name)].append(module)
    halves = request.measures_signal
    null = passes_needed(*request.methods_measured) is Passes.BACKWARD and (
        halves or needs_null(*request.methods_measured)
    )
    count = partial(bytes_recorded, modules, record, null=null, halves=halves)
    largest = max((count(at_once=block) for block in blocks.values()), default=0)
    return RecordedBytes(whole=count(), block=largest)


def find(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    """The largest number under any of some keys, within reason; 0 if there is none."""
    found = max(largest_number(config, key) for key in keys)
    return max(0, min(found, LARGEST))
