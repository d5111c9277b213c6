"""Fused experts that carry LoRA: PEFT puts one wrapper for each parameter around their module.

The wrapper of the module's last parameter is outermost, and the others are its ``base_layer``, one
inside the other: of which parameter a wrapper is, its name in the tree does not say.
"""

from typing import Any

from torch import nn

from fimlora.model.experts.fused import fused_experts

_WRAPPERS = frozenset({"base_layer", "_orig_mod"})


def adapts_parameter(layer: object) -> bool:
    """Tell a LoRA layer of one parameter from those of whole modules.

    Returns:
        Whether it is of a parameter.
    """
    return getattr(layer, "parameter_name", None) is not None


def adapted_name(path: str, layer: Any) -> str:
    """Name what a LoRA layer adapts.

    Args:
        path: Where the layer is in the adapted model's tree.
        layer: The layer.

    Returns:
        The module's name in the tree without adapters, or the parameter's.
    """
    if not adapts_parameter(layer):
        return path
    parts = [part for part in path.split(".") if part not in _WRAPPERS]
    return ".".join([*parts, layer.parameter_name])


def carriers_of_parameters(base: nn.Module) -> dict[str, nn.Module]:
    """Find the fused experts that carry LoRA.

    Args:
        base: A base model, which may carry adapters.

    Returns:
        The wrapper by the parameter's name.
    """
    found = {
        adapted_name(path, module): module
        for path, module in base.named_modules()
        if hasattr(module, "lora_A") and adapts_parameter(module)
    }
    experts = fused_experts(base) if found else {}
    return {name: found[name] for name in experts if name in found}
