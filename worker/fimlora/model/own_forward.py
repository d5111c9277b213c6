"""Linear maps whose class has a forward of its own: which of them still are linear maps.

LoRA adds a tensor to what a map returns, and what is measured is the gradient of that. A router
that is a Linear returns scores and indices, and PEFT fails on it; a grouped map is the product of
parts. Such a class is tried on the meta device, without its weights.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fimlora.model.linear_kinds import is_quantised, weight_of

_TRIED = (1, 2)  # examples and tokens


def returns_its_product(module: nn.Module) -> bool:
    """Tell whether a map returns one vector of its output features for each vector it is given.

    Args:
        module: A Linear or Conv1D.

    Returns:
        Whether it does. Packed weights are taken at their word: their kernels have no meta form.
    """
    forward: Any = type(module).forward
    if forward in {nn.Linear.forward, Conv1D.forward, nn.Embedding.forward}:
        return True
    weight = weight_of(module)
    if weight is None or is_quantised(module) or weight.dim() != 2:
        return True
    d_out, d_in = weight.shape
    x = torch.empty(*_TRIED, d_in, dtype=weight.dtype, device="meta")
    try:
        with torch.no_grad():
            output = forward(_without_values(module), x)
    except Exception:
        return False
    return isinstance(output, Tensor) and output.shape == (*_TRIED, d_out)


def _without_values(module: nn.Module) -> nn.Module:
    """Copy a module with its tensors on the meta device, and without anybody's wrapper."""
    bare = copy.copy(module)
    bare.__dict__ = {**module.__dict__}
    bare.__dict__.pop("forward", None)
    for kind in ("_parameters", "_buffers"):
        tensors = module.__dict__[kind].items()
        bare.__dict__[kind] = {
            name: None if tensor is None else torch.empty_like(tensor, device="meta")
            for name, tensor in tensors
        }
    return bare
