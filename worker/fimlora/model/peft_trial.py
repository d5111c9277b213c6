"""What the installed PEFT makes of an adapter config, tried out on a model without weights.

PEFT rewrites some targets, leaves out or refuses others, and what it does changes from one
version to the next: it is asked, not imitated. Nothing here touches the caller's model,
needs a weight or draws a random number.
"""

import threading
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from peft.utils.save_and_load import set_peft_model_state_dict
from torch import nn

from fimlora.errors import UnsupportedModule
from fimlora.model.experts.fused import fused_experts
from fimlora.model.experts.wrapped import (
    adapted_name,
    adapts_parameter,
    carriers_of_parameters,
)
from fimlora.model.naming import named_endings
from fimlora.model.outline import outline
from fimlora.model.targets import Unadaptable, base_model_of

_ADAPTER = "default"
# Tasks for which PEFT saves a head in full, by how transformers names classes that have one.
_TASKS_OF_HEADS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
# Filters of warnings are the whole process's: two threads must not set and restore them at once.
_quiet = threading.Lock()
_MAX_REASON = 160  # characters of what PEFT says


class PeftRefusal(UnsupportedModule):
    """PEFT raises at a config; the message is its own."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """What PEFT has made of a config.

    Attributes:
        ranks: Rank by name of the module, or of the parameter, that carries LoRA.
        scales: Effective scale, likewise.
        parameters: Names of those that are parameters, as fused experts are.
        saved: Names of the modules that are trained and saved in full.
        n_lora_parameters: Trainable parameters of all LoRA matrices, and of anything else
            that is trained outside ``saved``.
        tensors: Shape by name of the tensors that a file of weights must hold; ``None`` where
            that was not asked.
        lost: Names of those that PEFT does not find again when it loads such a file.
    """

    ranks: Mapping[str, int]
    scales: Mapping[str, float]
    parameters: tuple[str, ...]
    saved: tuple[str, ...]
    n_lora_parameters: int
    tensors: Mapping[str, tuple[int, ...]] | None = None
    lost: tuple[str, ...] = ()


def adapt(
    model: nn.Module, config: Mapping[str, Any], *, with_tensors: bool = False
) -> Adapted:
    """Put an adapter on an outline of a model, as stock PEFT does it.

    Args:
        model: The base model, loaded or a skeleton.
        config: The content of ``adapter_config.json``.
        with_tensors: Whether to find out what a file of weights holds, too: with thousands of
            modules that takes longer than all else.

    Returns:
        What the outline carries then.

    Raises:
        PeftRefusal: PEFT raises.
    """
    fields = deepcopy(dict(config)) | {"base_model_name_or_path": None}
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they tell of is seen in the outcome
        try:
            with torch.device("meta"):
                peft_config = PeftConfig.from_peft_type(**fields)
                tree = outline(model)
                adapted = get_peft_model(tree, peft_config, adapter_name=_ADAPTER)
        except Exception as error:  # it raises whatever it likes, and that is the answer
            raise PeftRefusal(_first_words(error)) from error
        described = _describe(adapted)
        return _with_tensors(described, adapted) if with_tensors else described


def unadaptable_beside(saved: Collection[str]) -> Unadaptable:
    """Say what stock PEFT will not adapt beside modules that are trained whole.

    Args:
        saved: Full names of these modules.

    Returns:
        As `unadaptable_by_peft`; it refuses where PEFT would not train just these whole.
    """

    def find(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
        if saved and names:
            check_saved(base_model_of(model), names[0], saved)
        return unadaptable_by_peft(model, names, saved)

    return find


def check_saved(model: nn.Module, target: str, saved: Collection[str]) -> None:
    """See that stock PEFT trains some modules whole, and no others.

    It takes every module whose name ends in a given one, without a dot between.

    Args:
        model: The base model, loaded or a skeleton.
        target: Any target module: without one PEFT makes no adapter.
        saved: Full names of the modules that are to be trained whole.

    Raises:
        UnsupportedModule: It refuses, or others would be trained, too.
    """
    saved = frozenset(saved)
    experts = fused_experts(outline(model)).keys() & {target}
    try:
        adapted = adapt(model, _config([target], experts, None, saved))
    except PeftRefusal as error:
        raise UnsupportedModule(
            f"PEFT refuses modules_to_save={sorted(saved)}: {error}"
        ) from error
    trained = frozenset(adapted.saved)
    for name in adapted.saved:
        if name not in saved:
            meant = min((s for s in saved if name.endswith(s)), default=min(saved))
            raise UnsupportedModule(
                f"modules_to_save names {meant!r}, and PEFT, which goes by how names end, would "
                f"train {name!r} whole with it: name both, or leave it out"
            )
    for name in sorted(saved):
        if name not in trained:
            raise UnsupportedModule(f"PEFT does not train {name!r} whole: leave it out")


def unadaptable_by_peft(
    model: nn.Module, names: Sequence[str], saved: Iterable[str] = ()
) -> dict[str, str]:
    """Find the modules that stock PEFT will not adapt, for the task of the model's own class.

    Args:
        model: A model, wrapped by PEFT or not; what carries LoRA already can.
        names: Full names of the modules that are to be targets.
        saved: Full names of modules that are trained whole besides.

    Returns:
        Reason by name; what is not in it is adapted, and nothing else.
    """
    base = base_model_of(model)
    carries = carriers_of_parameters(base)
    fresh = [n for n in names if n not in carries and not _has_lora(base, n)]
    kind = type(base).__name__
    tasks = (task for ending, task in _TASKS_OF_HEADS.items() if kind.endswith(ending))
    return unadaptable(base, fresh, task_type=next(tasks, None), modules_to_save=saved)


def unadaptable(
    model: nn.Module,
    names: Collection[str],
    *,
    task_type: str | None,
    modules_to_save: Iterable[str] = (),
) -> dict[str, str]:
    """Find the modules that stock PEFT will not adapt when it is asked to.

    Args:
        model: The base model, loaded or a skeleton.
        names: Full names of the modules that are to be targets.
        task_type: One of PEFT's task types, or ``None``.
        modules_to_save: Modules that are trained in full beside them.

    Returns:
        Reason by name; what is not in it is adapted, and nothing else.
    """
    left, reasons = dict.fromkeys(names), dict[str, str]()
    if not left:
        return reasons
    shell = outline(model)
    experts = fused_experts(shell).keys() & left.keys()

    def attempt(targets: Collection[str]) -> Adapted:
        return adapt(shell, _config(targets, experts, task_type, modules_to_save))

    while left:
        try:
            found = _not_adapted(attempt(left), left, shell)
        except PeftRefusal as error:
            found = _refused_alone(attempt, left) or dict.fromkeys(left, _refusal(error))
        if not found:
            break
        reasons |= found
        left = {name: None for name in left if name not in found}
    return {name: reasons[name] for name in names if name in reasons}


def _has_lora(base: nn.Module, name: str) -> bool:
    modules = dict(base.named_modules())
    return name in modules and hasattr(modules[name], "lora_A")


def _describe(adapted: Any) -> Adapted:
    base = adapted.get_base_model()
    found = ((n, m) for n, m in base.named_modules() if isinstance(m, LoraLayer))
    layers = {adapted_name(name, layer): layer for name, layer in found}
    saved = {n: m for n, m in base.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    in_full = {id(p) for module in saved.values() for p in module.parameters()}
    return Adapted(
        ranks={name: layer.r[_ADAPTER] for name, layer in layers.items()},
        scales={name: layer.scaling[_ADAPTER] for name, layer in layers.items()},
        parameters=tuple(
            n
            for n, layer in layers.items()
            if isinstance(layer, nn.Module) and adapts_parameter(layer)
        ),
        saved=tuple(saved),
        n_lora_parameters=sum(
            p.numel() for p in base.parameters() if p.requires_grad and id(p) not in in_full
        ),
    )


def _with_tensors(described: Adapted, adapted: Any) -> Adapted:
    # Not asking whether embeddings were resized, which looks for the model on the hub.
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return replace(described, tensors=shapes, lost=_lost(adapted, tensors))


def _lost(adapted: Any, tensors: Mapping[str, Any]) -> tuple[str, ...]:
    """Load the adapter's own tensors into it, which may rename and fuse them on the way."""
    try:
        result: Any = set_peft_model_state_dict(adapted, dict(tensors), adapter_name=_ADAPTER)
    except Exception:  # whatever it raises, nothing is loaded then
        return tuple(tensors)
    missing = [name for name in result.missing_keys if f".{_ADAPTER}." in name]
    return (*missing, *result.unexpected_keys)


def _config(
    targets: Collection[str],
    experts: Set[str],
    task_type: str | None,
    modules_to_save: Iterable[str],
) -> dict[str, Any]:
    of_experts = sorted(experts & set(targets))
    return {
        **({"target_parameters": of_experts} if of_experts else {}),
        "peft_type": "LORA",
        "task_type": task_type,
        "r": 1,
        "lora_alpha": 1,
        "target_modules": sorted(set(targets) - experts),
        "modules_to_save": sorted(modules_to_save) or None,
    }


def _not_adapted(adapted: Adapted, names: Collection[str], shell: nn.Module) -> dict[str, str]:
    """Reasons of those that carry no LoRA, and of those that drag in another module."""
    extra = [n for n in adapted.ranks if n not in names and n not in adapted.parameters]
    found = {
        name: f"PEFT would adapt {others[-1]!r} with it, which is not a target"
        for name, others in named_endings(extra).items()
        if name in names
    }
    for name in names:
        if name not in adapted.ranks:
            found[name] = _why_not(name, adapted, shell)
    return found


def _why_not(name: str, adapted: Adapted, shell: nn.Module) -> str:
    for saved in adapted.saved:
        if name == saved or name.startswith(f"{saved}."):
            return f"part of {saved!r}, which PEFT trains in full"
    if adapted.parameters and name not in fused_experts(shell):
        kind = getattr(getattr(shell, "config", None), "model_type", "this model")
        return f"PEFT adapts the fused experts of {kind} instead"
    return "PEFT does not adapt it"


def _refused_alone(attempt: Any, names: Iterable[str]) -> dict[str, str]:
    """Reasons of those that PEFT refuses whatever else is asked for, by their last name."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[2], []).append(name)
    found: dict[str, str] = {}
    for group in groups.values():
        try:
            attempt(group)
        except PeftRefusal as error:
            found |= dict.fromkeys(group, _refusal(error))
    return found


def _refusal(error: Exception) -> str:
    return f"PEFT refuses it: {error}"


def _first_words(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= _MAX_REASON else f"{words[:_MAX_REASON].rstrip()} ..."
