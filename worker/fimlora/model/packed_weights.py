"""How many numbers a weight stands for, whatever it is packed into.

Quantised weights lie several to a byte or to an integer, beside scales and zero points that are
no parameters of the model: a map's own features, or the shape that its quantiser has kept, say
how many there are.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

# What holds a linear map's weight, in modules of torch, GPTQ and AWQ, compressed-tensors, HQQ.
_WEIGHTS = ("weight", "qweight", "weight_packed", "W_q")
# What belongs to the packing; endings of tensor names.
_OF_PACKING = (
    "scales", "qzeros", "g_idx", "weight_scale", "weight_scale_inv", "weight_zero_point",
    "weight_g_idx", "weight_shape", "weight_global_scale", "input_scale", "input_zero_point",
    "input_global_scale", "output_scale", "activation_scale", "SCB", "CB",
)  # fmt: skip
_BLOCKS = "_blocks"  # MXFP4: two numbers to a byte


def logical_sizes(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Count the numbers that each weight of a model stands for.

    Args:
        model: A model, quantised or not.

    Yields:
        Name and size of each parameter as it was before it was packed; a shared one comes once.
    """
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, tensor in _own_weights(module):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{prefix}.{name}" if prefix else name, _size(module, name, tensor)


def _own_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    packed = is_packed(module)
    yield from (
        (name, parameter)
        for name, parameter in module.named_parameters(recurse=False)
        if not (packed and name.endswith(_OF_PACKING))
    )
    # GPTQ and AWQ keep packed weights as buffers, and the bias too.
    if packed:
        kept = (*_WEIGHTS, "bias")
        yield from ((n, b) for n, b in module.named_buffers(recurse=False) if n in kept)


def is_packed(module: nn.Module) -> bool:
    """See whether a module's weight stands for more numbers, or other ones, than it holds.

    Args:
        module: The module.

    Returns:
        Whether it is quantised in a way that its tensors show.
    """
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return any(
        name in {"qweight", "weight_packed", "W_q"}
        or name.endswith(_BLOCKS)
        or (name == "weight" and _is_quantised(tensor))
        for name, tensor in own
    )


def _is_quantised(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or tensor.dtype.itemsize < torch.half.itemsize


def _size(module: nn.Module, name: str, tensor: Tensor) -> int:
    state = getattr(tensor, "quant_state", None)
    if state is not None and getattr(state, "shape", None) is not None:
        return math.prod(state.shape)
    sides = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if name in _WEIGHTS and isinstance(sides[0], int) and isinstance(sides[1], int):
        return sides[0] * sides[1]
    return tensor.numel() * (2 if name.endswith(_BLOCKS) else 1)
