"""Give images and sounds the dtype of the tower that reads them.

A processor makes float32 pixels and spectra. Most towers cast what they are given to the dtype of
their first layer; others do not, and then fail in half precision. Here it is done for all that say,
by ``main_input_name`` as transformers' models do, which input is theirs.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fimlora.measuring.examples.batches import Batch
from fimlora.model.targets import base_model_of

# Inputs by the name under which their tower takes them.
_TAKEN_AS = {
    "pixel_values": "pixel_values",
    "pixel_values_videos": "pixel_values",
    "input_features": "input_features",
    "input_values": "input_values",
}
_FIRST_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def cast_media(model: nn.Module, inputs: Batch) -> Batch:
    """Cast floating images and sounds.

    Args:
        model: The model that is called with them, wrapped by PEFT or not.
        inputs: What it is called with.

    Returns:
        The same, with media in the dtype of their tower's first layer; of a tower that is not
        known, or whose first layer is packed, as they were.
    """
    return {name: _cast(model, name, value) for name, value in inputs.items()}


def _cast(model: nn.Module, name: str, value: Any) -> Any:
    if name not in _TAKEN_AS or not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    dtype = _tower_dtype(base_model_of(model), _TAKEN_AS[name])
    return value if dtype is None else value.to(dtype)


def _tower_dtype(base: nn.Module, name: str) -> torch.dtype | None:
    """Dtype of the first layer of the part of a model that takes an input."""
    for module in base.modules():
        if module is base or getattr(module, "main_input_name", None) != name:
            continue
        for layer in module.modules():
            if isinstance(layer, _FIRST_LAYERS):
                dtype = layer.weight.dtype
                return dtype if dtype.is_floating_point else None
    return None
