"""Let one adapter of a live PEFT model act alone for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from fimlora.errors import InvalidOption

# Not through set_adapter(): that also decides which parameters train.
_STATE = ("_active_adapter", "_disable_adapters")


@contextmanager
def acting_alone(model: nn.Module, adapter_name: str) -> Iterator[None]:
    """Activate one adapter and no other inside the block; put everything back after it.

    Modules that PEFT trains in full, such as a classification head, follow the adapter;
    where it has none of its own the base model's acts.

    Args:
        model: A model that carries adapters.
        adapter_name: Name of the one to activate, also where adapters are disabled.

    Yields:
        None. What was active, or disabled, is so again when the block ends, also when it
        raises.

    Raises:
        InvalidOption: An adapter is merged into base weights, so it acts whatever is active.
    """
    switches = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    if merged := sorted({name for module in switches for name in module.merged_adapters}):
        raise InvalidOption(f"adapter {merged[0]!r} is merged; call unmerge_adapter() first")
    before = [(module, name, getattr(module, name)) for module in switches for name in _STATE]
    try:
        for module in switches:
            vars(module).update(_active_adapter=adapter_name, _disable_adapters=False)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
