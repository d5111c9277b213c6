"""Which linear maps of a model are target modules, and where they sit.

Names are those of the base model's tree. On a model that PEFT has wrapped, a LoRA layer
stands where the linear map was; its ``base_layer`` is that map, and what is measured.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fimlora.errors import InvalidOption, UnknownTarget, UnsupportedModule
from fimlora.left_out import DRAWN_ANEW, EXCLUDED, FUSED_EXPERTS
from fimlora.model.packed_weights import logical_sizes
from fimlora.plan import TargetModule

ALL_LINEAR = "all-linear"
# Of some modules of a model, by name: which cannot be adapted as planned, and why.
Unadaptable = Callable[[nn.Module, Sequence[str]], Mapping[str, str]]
# How transformers names the head of a sequence classification model, as PEFT has it.
_CLASSIFICATION_HEADS = ("score", "classifier")
_MAX_NAMES_IN_MESSAGE = 5


@dataclass(frozen=True, slots=True)
class Choice:
    """The target modules of a model, and what was meant but is not one.

    Attributes:
        modules: The target modules, in the model's order; never none.
        not_targeted: Reason by name of a module, or of a parameter that holds several
            matrices.
    """

    modules: tuple[TargetModule, ...]
    not_targeted: Mapping[str, str] = field(default_factory=dict)


def find_targets(
    model: nn.Module,
    target_modules: str | Sequence[str] | None = None,
    *,
    exclude_modules: str | Sequence[str] | None = None,
) -> tuple[TargetModule, ...]:
    """Find the target modules of a model, in the model's own order.

    Args:
        model: A transformers model, wrapped by PEFT or not.
        target_modules: Names or dotted name endings; ``"all-linear"`` for every linear map
            but the output head; any other string is a regular expression over full names,
            as in PEFT. ``None`` stands for the modules that carry LoRA already or, when
            none does, for PEFT's default for the architecture.
        exclude_modules: What to leave out of these: names or dotted name endings, or a
            string that is a regular expression over full names.

    Returns:
        The target modules; never empty.

    Raises:
        InvalidOption: An empty list was given.
        UnknownTarget: An entry matches nothing; the message lists near names.
        UnsupportedModule: An entry matches something that is not a linear map, or nothing
            but fused experts.
    """  # noqa: DOC502 - the helpers raise
    return choose_targets(model, target_modules, exclude_modules=exclude_modules).modules


def choose_targets(
    model: nn.Module,
    target_modules: str | Sequence[str] | None = None,
    *,
    exclude_modules: str | Sequence[str] | None = None,
    drawn: Collection[str] = (),
    unadaptable: Unadaptable | None = None,
) -> Choice:
    """Choose the target modules of a model, and say what is meant but is not one.

    Experts of a mixture that transformers keeps as one 3-D parameter are no linear maps of
    their own: they are left out, as is all that an argument says.

    Args:
        model: A transformers model, wrapped by PEFT or not.
        target_modules: As for `find_targets`.
        exclude_modules: As for `find_targets`.
        drawn: Names of modules whose weights are drawn anew at every load.
        unadaptable: Given the model and the names of modules, says by name which of them an
            adapter cannot hold as planned, and why.

    Returns:
        The target modules in the model's order, never none; and the others with reasons.

    Raises:
        UnknownTarget: As for `find_targets`, or all that was meant is left out.
    """
    modules = dict(_base_modules(base_model_of(model)))
    fused = _fused_experts(model)
    meant = _meant(model, target_modules, modules, fused)
    left_out = dict.fromkeys(_fused_meant(model, target_modules, fused), FUSED_EXPERTS)
    excluded = _excluded(exclude_modules, {*meant, *left_out})
    left_out = {n: reason for n, reason in left_out.items() if n not in excluded}
    left_out |= dict.fromkeys(excluded & meant, EXCLUDED)
    left_out |= dict.fromkeys((meant - excluded) & set(drawn), DRAWN_ANEW)
    names = [name for name in modules if name in meant and name not in left_out]
    if unadaptable is not None:
        left_out |= unadaptable(model, names)
    targets = tuple(_describe(n, modules[n]) for n in names if n not in left_out)
    if not targets:
        raise UnknownTarget(_none_left(left_out))
    return Choice(targets, dict(sorted(left_out.items())))


def default_target_modules(model: nn.Module) -> list[str]:
    """Names PEFT targets by default in models of this architecture.

    Args:
        model: A base model or a PEFT model; only its config and module names are read.

    Returns:
        Leaf names, or full names where PEFT's own default is a pattern over full names.

    Raises:
        UnknownTarget: PEFT has no default for the architecture.
    """
    config = getattr(model, "config", None)
    model_type: str = getattr(config, "model_type", "unknown")
    default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
    if default is None:
        known = ", ".join(sorted(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING))
        raise UnknownTarget(
            f"PEFT has no default target modules for model_type {model_type!r}; pass "
            f"target_modules (a list of names, or 'all-linear'). Defaults exist for: {known}"
        )
    if isinstance(default, str):
        return [name for name, _ in model.named_modules() if re.fullmatch(default, name)]
    return sorted(default)


def head_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that PEFT trains in full when it adapts a classifier.

    Args:
        model: A base model, without an adapter.

    Returns:
        Tensor by parameter name; empty for models without a classification head.
    """
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if not set(_CLASSIFICATION_HEADS).isdisjoint(name.split(".")[:-1])
    }


def locate(model: nn.Module, module: TargetModule) -> nn.Module:
    """Find the linear map behind a target module, inside its LoRA layer if it has one.

    Args:
        model: The model `find_targets` was asked about.
        module: One of its target modules.

    Returns:
        The module whose input and output are those of the linear map.
    """
    return _unwrap_layer(base_model_of(model).get_submodule(module.name))


def uncompiled(model: nn.Module) -> nn.Module:
    """See through the wrapper of ``torch.compile``: hooks need the modules to run as such.

    Returns:
        The model that was compiled, or the model itself.
    """
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def base_model_of(model: nn.Module) -> nn.Module:
    """See through PEFT's wrapper.

    Returns:
        The transformers model itself.
    """
    model = uncompiled(model)
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        return cast("Callable[[], nn.Module]", model.get_base_model)()
    return model


def count_base_parameters(model: nn.Module) -> int:
    """Count the parameters of the base model, without what PEFT has added.

    Args:
        model: A transformers model, wrapped by PEFT or not; quantised weights count as the
            numbers they stand for.

    Returns:
        The number of parameters; shared ones count once.
    """
    return sum(
        size
        for name, size in logical_sizes(base_model_of(model))
        if not any(p.startswith(("lora_", "modules_to_save")) for p in name.split("."))
    )


def _meant(
    model: nn.Module,
    target_modules: str | Sequence[str] | None,
    modules: dict[str, nn.Module],
    fused: list[str],
) -> set[str]:
    """Names of the linear maps that a choice means."""
    if target_modules is None:
        return _carriers(model) or _by_entries(default_target_modules(model), modules, fused)
    if not isinstance(target_modules, str):
        return _by_entries(target_modules, modules, fused)
    if target_modules.lower() == ALL_LINEAR:
        return _all_linear(base_model_of(model), modules)
    return _by_expression(target_modules, modules, fused)


def _fused_meant(
    model: nn.Module, target_modules: str | Sequence[str] | None, fused: list[str]
) -> list[str]:
    """Names of the fused experts that a choice means."""
    if not fused or (target_modules is None and _carriers(model)):
        return []
    if target_modules is None:
        target_modules = default_target_modules(model)
    if not isinstance(target_modules, str):
        return [n for n in fused if any(_is_ending(e, n) for e in target_modules)]
    if target_modules.lower() == ALL_LINEAR:
        return fused
    return [name for name in fused if re.fullmatch(target_modules, name)]


def _excluded(exclude_modules: str | Sequence[str] | None, names: set[str]) -> set[str]:
    """Those of some names that are to be left out."""
    if exclude_modules is None:
        return set()
    if isinstance(exclude_modules, str):
        compiled = _compile("exclude_modules", exclude_modules)
        return {name for name in names if compiled.fullmatch(name)}
    return {name for name in names if any(_is_ending(e, name) for e in exclude_modules)}


def _none_left(left_out: Mapping[str, str]) -> str:
    name, reason = next(iter(left_out.items()))
    return (
        f"none of the {len(left_out)} modules that target_modules means can be a target; "
        f"{name!r}, for one: {reason}"
    )


def _compile(option: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise InvalidOption(
            f"{option}={expression!r} is no regular expression: {error}"
        ) from error


def _base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk the base model's tree as it was before PEFT touched it."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside) and inside:
            continue
        if hasattr(module, "base_layer") or hasattr(module, "modules_to_save"):
            inside = (*inside, f"{name}.")
        if not hasattr(module, "modules_to_save"):  # such a copy is trained in full
            yield name, _unwrap_layer(module)


def _unwrap_layer(module: nn.Module) -> nn.Module:
    return cast("nn.Module", module.base_layer) if hasattr(module, "base_layer") else module


def _carriers(model: nn.Module) -> set[str]:
    """Names of the modules that carry LoRA already."""
    named = base_model_of(model).named_modules()
    return {name for name, m in named if hasattr(m, "base_layer") and hasattr(m, "lora_A")}


def _all_linear(model: nn.Module, modules: dict[str, nn.Module]) -> set[str]:
    heads = [getattr(model, name, None) for name in _CLASSIFICATION_HEADS]
    if hasattr(model, "get_output_embeddings"):
        heads.append(cast("Callable[[], nn.Module | None]", model.get_output_embeddings)())
    in_heads = {id(m) for head in heads if isinstance(head, nn.Module) for m in head.modules()}
    embeddings = {id(m.weight) for m in modules.values() if isinstance(m, nn.Embedding)}
    names = {
        name
        for name, module in modules.items()
        if _is_linear(module)
        and id(module) not in in_heads
        # A head that shares its weight with an embedding is the embedding.
        and id(module.weight) not in embeddings
    }
    if not names:
        raise UnknownTarget(f"{type(model).__name__} has no linear map besides its output head")
    return names


def _fused_experts(model: nn.Module) -> list[str]:
    """Names of the parameters that hold one matrix per expert, sorted."""
    return sorted(
        f"{name}.{parameter_name}"
        for name, module in base_model_of(model).named_modules()
        if "expert" in f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    )


def _refuse_fused(given: str, names: list[str]) -> None:
    """Refuse targets that are fused experts only.

    Raises:
        UnsupportedModule: There are some.
    """
    if names:
        raise UnsupportedModule(
            f"{given} matches {names[0]!r}, which holds the matrices of all experts in one "
            "parameter; fused experts are not measured: name Linear or Conv1D modules only"
        )


def _is_ending(entry: str, name: str) -> bool:
    return name == entry or name.endswith(f".{entry}")


def _by_expression(
    expression: str, modules: dict[str, nn.Module], fused: list[str]
) -> set[str]:
    compiled = _compile("target_modules", expression)
    names = {name for name in modules if compiled.fullmatch(name)}
    if not names:
        matched = [name for name in fused if re.fullmatch(expression, name)]
        _refuse_fused(f"target_modules={expression!r}", matched)
        raise UnknownTarget(
            f"target_modules={expression!r} matches no full module name (a string is a regular "
            f"expression; use a list for name endings). {_near_names(expression, modules)}"
        )
    return _refuse_nonlinear(expression, names, modules)


def _by_entries(
    entries: Sequence[str], modules: dict[str, nn.Module], fused: list[str]
) -> set[str]:
    if not entries:
        raise InvalidOption("target_modules is empty: name at least one module")
    found: set[str] = set()
    for entry in entries:
        names = {name for name in modules if _is_ending(entry, name)}
        if not names:
            matched = [name for name in fused if _is_ending(entry, name)]
            _refuse_fused(f"target_modules entry {entry!r}", matched)
            raise UnknownTarget(
                f"no module is named {entry!r} or ends in '.{entry}'. "
                f"{_near_names(entry, modules)}"
            )
        found |= _refuse_nonlinear(entry, names, modules)
    return found


def _refuse_nonlinear(entry: str, names: set[str], modules: dict[str, nn.Module]) -> set[str]:
    for name in sorted(names):
        if not _is_linear(modules[name]):
            raise UnsupportedModule(
                f"target_modules entry {entry!r} matches {name!r}, a "
                f"{type(modules[name]).__name__}; only Linear and Conv1D can be measured"
            )
    return names


def _near_names(entry: str, modules: dict[str, nn.Module]) -> str:
    linear = [name for name, module in modules.items() if _is_linear(module)]
    endings = sorted({name.rsplit(".", 1)[-1] for name in linear})
    last = entry.rsplit(".", 1)[-1]
    pool = linear if "." in entry else endings
    near = difflib.get_close_matches(entry, pool, n=_MAX_NAMES_IN_MESSAGE, cutoff=0.5)
    near = near or difflib.get_close_matches(last, endings, n=_MAX_NAMES_IN_MESSAGE, cutoff=0.5)
    return (
        f"Near names: {', '.join(near)}"
        if near
        else f"Linear maps end in: {', '.join(endings)}"
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _describe(name: str, module: nn.Module) -> TargetModule:
    if isinstance(module, Conv1D):
        d_in, d_out = module.weight.shape
        return TargetModule(name, d_in, d_out, fan_in_fan_out=True)
    linear = cast("nn.Linear", module)
    return TargetModule(name, linear.in_features, linear.out_features)
