"""Cut a model into blocks that can be loaded one after the other.

A block is a block of one of the model's repeated lists, whatever the architecture calls
them, or a target module outside of them (a pooler's dense). What is left, embeddings and
heads and norms between, is the *rest*.
"""

from collections.abc import Sequence

from torch import nn

from fimlora.errors import UnsupportedModule
from fimlora.plan import TargetModule


def find_blocks(model: nn.Module, modules: Sequence[TargetModule]) -> dict[str, nn.Module]:
    """Find the blocks of a model.

    Args:
        model: A transformers model.
        modules: Its target modules.

    Returns:
        The blocks by name, in the model's order; none is inside another.

    Raises:
        UnsupportedModule: The model has no repeated blocks.
    """
    blocks: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not _is_inside(name, blocks):
            blocks |= {
                f"{name}.{index}": block
                for index, block in module.named_children()
                if any(True for _ in block.children())
            }
    if not blocks:
        raise UnsupportedModule(f"{type(model).__name__} has no list of blocks to stream")
    outside = {m.name for m in modules if not _is_inside(m.name, blocks)}
    return {n: m for n, m in model.named_modules() if n in blocks or n in outside}


def targets_of(block: str, modules: Sequence[TargetModule]) -> tuple[TargetModule, ...]:
    """Pick the target modules of a block.

    Args:
        block: The block's name.
        modules: Target modules of the model.

    Returns:
        Those inside the block, or the block itself.
    """
    return tuple(m for m in modules if m.name == block or m.name.startswith(f"{block}."))


def _is_inside(name: str, blocks: dict[str, nn.Module]) -> bool:
    return any(name.startswith(f"{block}.") for block in blocks)
