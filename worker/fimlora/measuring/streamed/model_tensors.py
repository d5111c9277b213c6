"""Put weights under their names in a model, one by one."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fimlora.model.weight_reader import WeightReader


def names_in(modules: Iterable[str], names: Iterable[str]) -> set[str]:
    """Pick the names of what is inside some modules.

    Args:
        modules: Names of the modules.
        names: Names of tensors.

    Returns:
        Those of the tensors that are in one of the modules.
    """
    prefixes = tuple(f"{module}." for module in modules)
    return {name for name in names if name.startswith(prefixes)}


def put(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Put a tensor under a name.

    Args:
        model: The model.
        name: Name of a parameter or buffer.
        tensor: What is to be there.

    Returns:
        What was there.
    """
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._buffers:  # noqa: SLF001 - no setter takes both kinds
        replaced, module._buffers[leaf] = module._buffers[leaf], tensor  # noqa: SLF001
    else:
        replaced = module._parameters[leaf]  # noqa: SLF001
        if not isinstance(tensor, Parameter):
            tensor = Parameter(tensor, requires_grad=False)
        module._parameters[leaf] = tensor  # noqa: SLF001
    assert replaced is not None
    return replaced


def put_from(
    reader: WeightReader, model: nn.Module, names: Iterable[str], device: torch.device
) -> None:
    """Read weights into memory of their own, and put them into the model.

    Args:
        reader: Reads them.
        model: The model.
        names: Their names.
        device: Where they are to be.
    """
    tensors = model.state_dict(keep_vars=True)
    wanted = {name: tensors[name] for name in names}
    for name, tensor in reader.read_whole(wanted, device).items():
        put(model, name, tensor)
