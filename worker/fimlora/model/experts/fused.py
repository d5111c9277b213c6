"""Fused experts: parameters of three axes that hold one matrix per expert of a layer.

PEFT adapts such a parameter by its name, with one rank for all its experts, and reads each matrix
as ``d_out x d_in`` unless the module says ``is_transposed``. Llama 4 does not say so though its
matrices are: there PEFT's A stands at the output and its B at the input, which are *swapped*.
"""

from collections.abc import Sequence, Set
from difflib import get_close_matches

import torch
from torch import nn

from fimlora.errors import InvalidOption, UnknownTarget
from fimlora.left_out import OTHER_EXPERTS
from fimlora.model.naming import is_ending
from fimlora.plan import TargetModule

ALL_EXPERTS = "all"
# What stands around a module in its place, in the names of what it holds.
_WRAPPERS = frozenset({"_orig_mod", "base_layer"})
# What transformers' decorator of experts leaves on them, which says how they are run.
_SAID = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "num_experts")
# Experts that are given all tokens at once, each expert those that it was chosen for.
_OF_LLAMA4 = "Llama4TextExperts"
_DTYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


def fused_experts(model: nn.Module) -> dict[str, nn.Module]:
    """Find the parameters that hold one matrix per expert.

    Args:
        model: A base model, which may carry adapters.

    Returns:
        The module that holds it by the parameter's name in the model's tree without adapters, in
        the model's order.
    """
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        parts = [part for part in path.split(".") if part not in _WRAPPERS]
        if "expert" not in f"{parts[-1]} {type(module).__name__}".lower():
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3:
                found[".".join([*parts, name])] = module
    return found


def names_meant(
    target_parameters: str | Sequence[str] | None, fused: Sequence[str]
) -> set[str]:
    """Find the fused experts that are asked for.

    Args:
        target_parameters: Names or dotted endings of parameters; ``"all"`` for every one.
        fused: Names of the model's fused experts.

    Returns:
        Their names.

    Raises:
        InvalidOption: It is something else than these.
        UnknownTarget: The model has none, or an entry matches none.
    """
    if target_parameters is None:
        return set()
    if isinstance(target_parameters, str) and target_parameters != ALL_EXPERTS:
        raise InvalidOption(
            f"target_parameters={target_parameters!r}; allowed are {ALL_EXPERTS!r}, or a list of "
            "names of parameters, or of their endings"
        )
    if not fused:
        raise UnknownTarget(
            "target_parameters asks for fused experts, and no parameter of this model holds any; "
            "leave it out"
        )
    if target_parameters == ALL_EXPERTS:
        return set(fused)
    if not target_parameters:
        raise InvalidOption("target_parameters is empty: leave it out, or name a parameter")
    found: set[str] = set()
    for entry in target_parameters:
        names = {name for name in fused if is_ending(entry, name)}
        if not names:
            endings = sorted({name.rpartition(".")[2] for name in fused})
            near = get_close_matches(entry, [*endings, *fused], n=3) or endings
            raise UnknownTarget(
                f"no parameter of fused experts is named {entry!r} or ends in '.{entry}'. "
                f"Near names: {', '.join(near)}"
            )
        found |= names
    return found


def unfit_experts(names: Set[str], fused: dict[str, nn.Module]) -> dict[str, str]:
    """Find the fused experts that run in a way nobody here knows.

    Args:
        names: Names of parameters.
        fused: The modules that hold them.

    Returns:
        Reason by name.
    """
    return {
        name: OTHER_EXPERTS for name in fused if name in names and not _is_known(name, fused)
    }


def is_experts(module: nn.Module) -> bool:
    """Tell experts that are run here expert by expert.

    Returns:
        Whether these are such.
    """
    return is_llama4(module) or _is_routed(module)


def is_llama4(module: nn.Module) -> bool:
    """Tell experts that are given all tokens, with zeros in the place of those of others.

    Returns:
        Whether these are such.
    """
    return any(kind.__name__ == _OF_LLAMA4 for kind in type(module).__mro__)


def is_swapped(module: nn.Module) -> bool:
    """Tell experts of which PEFT's A is next to the output, and its B next to the input.

    Returns:
        Whether these are such.
    """
    return is_llama4(module) and not getattr(module, "is_transposed", False)


def describe_experts(name: str, module: nn.Module) -> TargetModule:
    """Say what PEFT adapts of fused experts.

    Args:
        name: The parameter's name.
        module: The module that holds it.

    Returns:
        The target, whose sides are those of PEFT's A and B.
    """
    n_experts, first, second = getattr(module, leaf_of(name)).shape
    is_transposed = getattr(module, "is_transposed", False)
    d_in, d_out = (first, second) if is_transposed else (second, first)
    return TargetModule(name, d_in, d_out, n_experts=n_experts)


def leaf_of(name: str) -> str:
    """The parameter's name inside its module."""
    return name.rpartition(".")[2]


def slice_name(name: str, expert: int) -> str:
    """Name one expert's matrix of a fused parameter."""
    return f"{name}[{expert}]"


def _is_routed(module: nn.Module) -> bool:
    """Whether experts are called with tokens, and who they are for: all that is decorated is."""
    return (
        all(hasattr(module, said) for said in _SAID)
        and hasattr(module, "_apply_gate")
        and not getattr(module, "_is_expert_parallel", False)
    )


def _is_known(name: str, fused: dict[str, nn.Module]) -> bool:
    module = fused[name]
    if not is_experts(module) or getattr(module, leaf_of(name)).dtype not in _DTYPES:
        return False
    up = "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"
    return leaf_of(name) in {up, "down_proj"}
