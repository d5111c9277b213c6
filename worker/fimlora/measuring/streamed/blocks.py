"""Cut a model into units that can be loaded one after the other.

A unit is a block of one of the model's repeated lists, whatever the architecture calls
them, or a target module outside of them (a pooler's dense). What is left, embeddings and
heads and norms between, is the *rest*.
"""

from collections.abc import Sequence

from torch import nn

from fimlora.errors import UnsupportedModule
from fimlora.plan import TargetModule


def find_units(model: nn.Module, modules: Sequence[TargetModule]) -> dict[str, nn.Module]:
    """Find the units of a model.

    Args:
        model: A transformers model.
        modules: Its target modules.

    Returns:
        The units by name, in the model's order; none is inside another.

    Raises:
        UnsupportedModule: The model has no repeated blocks.
    """
    units: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not _is_inside(name, units):
            units |= {
                f"{name}.{index}": block
                for index, block in module.named_children()
                if any(True for _ in block.children())
            }
    if not units:
        raise UnsupportedModule(f"{type(model).__name__} has no list of blocks to stream")
    outside = {m.name for m in modules if not _is_inside(m.name, units)}
    return {n: m for n, m in model.named_modules() if n in units or n in outside}


def targets_of(unit: str, modules: Sequence[TargetModule]) -> tuple[TargetModule, ...]:
    """Pick the target modules of a unit.

    Args:
        unit: The unit's name.
        modules: Target modules of the model.

    Returns:
        Those inside the unit, or the unit itself.
    """
    return tuple(m for m in modules if m.name == unit or m.name.startswith(f"{unit}."))


def _is_inside(name: str, units: dict[str, nn.Module]) -> bool:
    return any(name.startswith(f"{unit}.") for unit in units)
