"""Linear maps as PEFT sees them: plain ones, and those whose weights are quantised.

Scores need a map's inputs and output gradients alone, so however a weight is packed the map is
measured like any other. What differs is where its features stand, and whether a kernel lets
gradients through. Most formats keep the class of `torch.nn.Linear`, or refine it (bitsandbytes,
torchao, FP8, compressed-tensors); the others are known by the name of their class, so that
nothing has to be installed to tell them.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from transformers.pytorch_utils import Conv1D

from fimlora.model.packed_weights import is_packed

# Bases of the classes that PEFT adapts and that do not refine torch's Linear.
_CLASSES = frozenset({
    "BaseQuantLinear",  # GPT-QModel: GPTQ and AWQ
    "HQQLinear",
    "EetqLinear",
    "QuantizedLinear",  # AQLM
    "WQLinear_GEMM",  # AutoAWQ
    "WQLinear_GEMV",
})  # fmt: skip
_WEIGHTS = ("weight", "qweight", "weight_packed", "W_q")


def is_linear_map(module: nn.Module) -> bool:
    """Tell a linear map that LoRA can be added to, quantised or not.

    Args:
        module: A module of a base model.

    Returns:
        Whether it is one.
    """
    return isinstance(module, nn.Linear | Conv1D) or _is_packed_class(module)


def is_quantised(module: nn.Module) -> bool:
    """Tell a linear map whose weight is stored otherwise than as the numbers it stands for.

    Args:
        module: A module of a base model.

    Returns:
        Whether it is one.
    """
    if not is_linear_map(module):
        return False
    weight = weight_of(module)
    # Some quantisers give the tensor a class of its own, of the dtype that it stands for.
    is_own_class = weight is not None and type(weight.detach()) is not Tensor
    return is_own_class or _is_packed_class(module) or is_packed(module)


def awaits_unpacking(module: nn.Module) -> bool:
    """Tell a map of compressed-tensors whose packed weight the model's first pass replaces for good.

    Args:
        module: A module of a base model.

    Returns:
        Whether it is one.
    """
    return bool(getattr(module, "quantization_status", None) == "compressed")


def weight_of(module: nn.Module) -> Tensor | None:
    """Find the tensor that holds a linear map's weight, packed or not.

    Args:
        module: A linear map.

    Returns:
        The tensor; ``None`` where it is kept some other way.
    """
    held = (vars(module)[kind].get(n) for n in _WEIGHTS for kind in ("_parameters", "_buffers"))
    return next((tensor for tensor in held if isinstance(tensor, Tensor)), None)


def features_of(module: nn.Module) -> tuple[int, int]:
    """Find the sides of a linear map, which a packed weight does not tell.

    Args:
        module: A linear map, or a table.

    Returns:
        Input and output features.
    """
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return d_in, d_out
    if isinstance(module, nn.Embedding):  # a map of one-hot vectors
        return module.num_embeddings, module.embedding_dim
    linear = cast("Any", module)
    if hasattr(linear, "in_features"):
        return linear.in_features, linear.out_features
    return linear.infeatures, linear.outfeatures  # older kernels of GPTQ


def as_plain(module: nn.Module) -> nn.Module:
    """Make the map that a quantised one stands for, on the meta device.

    Args:
        module: A quantised linear map.

    Returns:
        A Linear of the same features.
    """
    d_in, d_out = features_of(module)
    bias = getattr(module, "bias", None) is not None
    return nn.Linear(d_in, d_out, bias=bias, device="meta")


def is_unlike_plain(module: nn.Module) -> bool:
    """Tell a quantised map that a copy in structure cannot be made of tensor by tensor.

    Args:
        module: A module of a base model.

    Returns:
        Whether `as_plain` is to stand for it.
    """
    if _is_packed_class(module):
        return True
    if not isinstance(module, nn.Linear):
        return False
    weight = weight_of(module)
    return weight is None or type(weight) is not Parameter or is_packed(module)


def computes_in(model: nn.Module) -> torch.dtype:
    """Find the dtype of what flows between a model's modules.

    Args:
        model: A base model.

    Returns:
        The dtype of its first parameter that is no packed weight.
    """
    wide = (
        p.dtype
        for p in model.parameters()
        if p.is_floating_point() and p.dtype.itemsize >= torch.half.itemsize
    )
    return next(wide, torch.float32)


def _is_packed_class(module: nn.Module) -> bool:
    return any(base.__name__ in _CLASSES for base in type(module).__mro__)
