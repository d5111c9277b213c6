"""A streamed run that is measured in shards: what blocks hand on, and how they are put together."""

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fimlora.measuring.recording.addends import Allowance
from fimlora.measuring.recording.recorder import Recorder
from fimlora.measuring.resume.merge import ShardSums
from fimlora.measuring.run_in_shards import RunInShards
from fimlora.measuring.streamed.block_weights import BlockWeights
from fimlora.measuring.streamed.blocks import targets_of
from fimlora.measuring.streamed.schedule import NewRecorder
from fimlora.model.targets import locate
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import Groups

_SUMS, _LEARNED = "sums", "learned"


def packed(recorder: Recorder, n_examples: int, modules: Mapping[str, nn.Module]) -> Groups:  # noqa: ARG001
    """Give the sums of a block as a run keeps and saves what blocks have come to.

    Args:
        recorder: The block's.
        n_examples: Of no use.
        modules: Of no use.

    Returns:
        Its sums by name, and what it has learned by the name of a module, as text in bytes.
    """
    sums, learned = recorder.state()
    text = np.frombuffer(json.dumps(learned).encode(), dtype=np.uint8)
    return {
        _SUMS: {key: tensor.cpu().numpy() for key, tensor in sums.items()},
        _LEARNED: {min(recorder.names): text},
    }


def unpacked(shards: RunInShards, blocks: Sequence[Groups], largest: int) -> ShardSums:
    """Put together what `packed` gave of all blocks.

    Args:
        shards: The run.
        blocks: What it gave.
        largest: Examples that went through the model at once.

    Returns:
        The sums of the shard.
    """
    sums: dict[str, Tensor] = {}
    learned = []
    for block in blocks:
        sums |= {key: torch.from_numpy(np.array(v)) for key, v in block[_SUMS].items()}
        learned += [json.loads(v.tobytes()) for v in block[_LEARNED].values()]
    return shards.sums_of(sums, learned, largest)


def of_shard(new_recorder: NewRecorder, n_before: int, parts_bytes: int) -> NewRecorder:
    """Make recorders that know of the batches before a shard.

    Args:
        new_recorder: Makes a recorder for the targets of one block.
        n_before: How many batches with a labelled example there are before the shard's own.
        parts_bytes: Memory for what the sums of all blocks are made of.

    Returns:
        What makes them.
    """
    allowance = Allowance(parts_bytes)

    def new(targets: Sequence[TargetModule]) -> Recorder:
        recorder = new_recorder(targets)
        recorder.keep_addends(allowance)
        recorder.pass_over(n_before)
        return recorder

    return new


def merge_blocks(
    shards: RunInShards,
    model: nn.Module,
    modules: Sequence[TargetModule],
    blocks: Mapping[str, nn.Module],
    weights: BlockWeights | None,
    new_recorder: NewRecorder,
    device: torch.device,
) -> Iterator[Groups]:
    """Put shards together, block by block.

    Args:
        shards: The run.
        model: The skeleton.
        modules: Its target modules.
        blocks: Its blocks by name.
        weights: Gives blocks their weights; ``None`` where nobody looks at them.
        new_recorder: Makes a recorder for the targets of one block.
        device: Where it computes.

    Yields:
        What was recorded in each block with targets.
    """
    for name in blocks:
        targets = targets_of(name, modules)
        if not targets:
            continue
        if weights is not None:
            weights.load(name)
        recorder = new_recorder(targets)
        shards.merge(recorder, device)
        located = {module.name: locate(model, module) for module in targets}
        yield recorder.groups(sum(recorder.batch_sizes), located)
