"""Look at a model's weights block by block, where no example is needed."""

import itertools
from collections.abc import Mapping, Sequence

from torch import nn

from fimlora.measuring.streamed.block_weights import BlockWeights
from fimlora.measuring.streamed.blocks import targets_of
from fimlora.measuring.streamed.progress import LayerwiseProgress
from fimlora.measuring.streamed.schedule import NewRecorder
from fimlora.model.targets import locate
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import Groups


def look_at_weights(
    model: nn.Module,
    modules: Sequence[TargetModule],
    blocks: Mapping[str, nn.Module],
    weights: BlockWeights,
    new_recorder: NewRecorder,
    progress: LayerwiseProgress,
) -> list[Groups]:
    """Record what the weights of each block with targets say.

    Args:
        model: The skeleton.
        modules: Its target modules.
        blocks: Its blocks by name.
        weights: Gives blocks their weights.
        new_recorder: Makes a recorder for the targets of one block.
        progress: How far it is.

    Returns:
        What was recorded, block by block.
    """
    progress.resume()
    left = [name for name in blocks if targets_of(name, modules)][progress.n_done :]
    for name, following in itertools.zip_longest(left, left[1:]):
        weights.load(name)
        if following is not None:
            weights.prefetch(following)
        targets = targets_of(name, modules)
        located = {module.name: locate(model, module) for module in targets}
        progress.finish_forward(new_recorder(targets).groups(0, located))
    progress.report_end()
    return progress.found
