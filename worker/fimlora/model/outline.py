"""The bare tree of a model: the modules a fresh load would build, without a single weight.

A copy in structure alone: every module is a new object of its own class and every tensor
stands on the meta device, so that others may change the copy as they like. What people have
put on the model is not in it: adapters, compiled wrappers, hooks, replaced methods.
"""

from collections import OrderedDict
from copy import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fimlora.model.linear_kinds import as_plain, is_unlike_plain
from fimlora.model.targets import base_model_of

# What PEFT, accelerate and torch.compile leave in a module's attributes.
_ADDED = ("_compiled_call_impl", "_hf_hook", "_hf_peft_config_loaded", "_old_forward")
_ADDED_TOO = ("forward", "hf_device_map", "peft_config")
# A module stands inside the module that took its place, under one of these names.
_INSIDE = ("_orig_mod", "base_layer", "original_module")


def outline(model: nn.Module) -> nn.Module:
    """Copy the tree of a model, with its parameters and buffers on the meta device.

    Args:
        model: A base model, loaded or a skeleton, compiled or not, that may carry adapters.

    Returns:
        The base model's tree; what was shared in the model is shared in it.
    """
    return _copy_module(base_model_of(model), {})


def original(module: nn.Module) -> nn.Module:
    """See through what stands in a module's place: a compiled wrapper, a LoRA layer.

    Args:
        module: A module of some tree.

    Returns:
        The module that was there, or the module itself.
    """
    for name in _INSIDE:
        inner = module._modules.get(name)  # noqa: SLF001 - wrappers answer for what is inside
        if inner is not None:
            return original(inner)
    return module


def _copy_module(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    module = original(module)
    if id(module) in known:
        return cast("nn.Module", known[id(module)])
    # A quantised map as the one it stands for: PEFT goes by names and features alone.
    clone = as_plain(module) if is_unlike_plain(module) else _same_class(module, known)
    known[id(module)] = clone
    return clone


def _same_class(module: nn.Module, known: dict[int, Any]) -> nn.Module:
    clone = nn.Module.__new__(type(module))
    state = {k: v for k, v in vars(module).items() if k not in _ADDED + _ADDED_TOO}
    for name, value in state.items():
        if name.endswith("_hooks") or "_hooks_" in name:
            state[name] = OrderedDict() if isinstance(value, dict) else value
    if "config" in state:  # PEFT writes into it
        state["config"] = known.setdefault(id(state["config"]), copy(state["config"]))
    for group in ("_parameters", "_buffers"):
        state[group] = {k: _on_meta(t, known) for k, t in vars(module)[group].items()}
    state["_modules"] = {}
    vars(clone).update(state)
    for name, child in module._modules.items():  # noqa: SLF001
        vars(clone)["_modules"][name] = None if child is None else _copy_module(child, known)
    return clone


def _on_meta(tensor: Tensor | None, known: dict[int, Any]) -> Tensor | None:
    if tensor is None:
        return None
    if id(tensor) not in known:
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        if isinstance(tensor, Parameter):
            empty = Parameter(empty, requires_grad=tensor.requires_grad)
        known[id(tensor)] = empty
    return cast("Tensor", known[id(tensor)])
