"""Where a model takes its inputs, also when some of its weights are away."""

import torch
from torch import nn


def input_device(model: nn.Module) -> torch.device:
    """Say where to put what a model is called with.

    Offloaded weights are on the meta device and come when a module runs; where they come to is
    written on the hook that fetches them.

    Args:
        model: A model.

    Returns:
        The device.
    """
    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    if device is not None:
        return torch.device(device)
    devices = (parameter.device for parameter in model.parameters())
    return next((d for d in devices if d.type != "meta"), torch.device("cpu"))
