"""Modules that train whole beside LoRA, as PEFT's ``modules_to_save`` names them.

PEFT wraps a module whose name merely ends in an entry, without a dot between (``head`` means
``lm_head``), and puts no LoRA inside it. Here an entry is a name, or an ending after a dot, and
what is written are full names, so that PEFT finds the same modules.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from fimlora.errors import InvalidOption, UnknownTarget, UnsupportedModule
from fimlora.model.compiled import plain_name
from fimlora.model.naming import Modules, named_endings
from fimlora.model.targets import base_model_of
from fimlora.whole_names import FULL_NAMES, is_inside, outermost, saved_facts

# What PEFT does not wrap, as nothing calls them.
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
# Classes of these endings have a head that PEFT trains whole whatever it is told.
_WITH_HEAD = ("ForSequenceClassification", "ForTokenClassification")
_MOST_NEAR = 5
# PEFT compiles a pattern for each of them and looks at it for each module; Python keeps 512 of these,
# and with more each look compiles anew, which takes hours in a large model.
_MOST_SAVED = 500


@dataclass(frozen=True, slots=True)
class SavedModule:
    """A module that trains whole.

    Attributes:
        name: Full name in the base model.
        parameters: Numbers in its own copy, all of which train.
        tied_to: Another module that has one of its weights; the copy is untied from it.
    """

    name: str
    parameters: int
    tied_to: str | None = None


def facts_of_saved(saved: Iterable[SavedModule]) -> dict[str, Any]:
    """Say of modules that train whole what a plan's provenance does.

    Args:
        saved: The modules.

    Returns:
        Facts; empty where there are none.
    """
    saved = tuple(saved)
    untied = {each.name: each.tied_to for each in saved if each.tied_to is not None}
    return saved_facts({each.name: each.parameters for each in saved}, untied)


def find_saved(model: nn.Module, entries: Sequence[str] | None) -> tuple[SavedModule, ...]:
    """Find the modules that train whole, in the model's order.

    Args:
        model: The base model, loaded or a skeleton, without an adapter.
        entries: Names of modules, or endings of names after a dot; ``None`` for none.

    Returns:
        The modules; one inside another is left to that.

    Raises:
        InvalidOption: An empty list was given.
        UnknownTarget: An entry means no module; the message lists near names.
        UnsupportedModule: An entry means what cannot be trained whole, or all mean too many modules.
    """
    if entries is None:
        return ()
    if isinstance(entries, str) or not entries:
        raise InvalidOption(
            f"modules_to_save={entries!r}: give a list of at least one name of a module"
        )
    modules = {name: module for name, module in model.named_modules() if name}
    endings = named_endings(modules)
    found: set[str] = set()
    for entry in entries:
        names = endings.get(entry)
        if not names:
            raise UnknownTarget(
                f"modules_to_save entry {entry!r} is no name of a module and no end of one. "
                f"{_near(entry, modules)}"
            )
        for name in names:
            _check(entry, name, modules, model)
        found.update(names)
    owners = _owners(model)
    whole = set(outermost(found))
    if len(whole) > _MOST_SAVED:
        raise UnsupportedModule(
            f"modules_to_save={list(entries)[:_MOST_NEAR]} means {len(whole):,} modules, such as "
            f"{min(whole)!r}, and PEFT takes hours with more than {_MOST_SAVED}: name fewer, or modules "
            "around them"
        )
    return tuple(_describe(n, m, owners) for n, m in modules.items() if n in whole)


def saved_on(model: nn.Module, adapter_name: str) -> tuple[SavedModule, ...]:
    """Find the modules that an adapter on a model trains whole, but a classification's head.

    Args:
        model: A model that PEFT has wrapped.
        adapter_name: The adapter's name.

    Returns:
        The modules, each with the parameters of its copy.
    """
    base = base_model_of(model)
    has_head = type(base).__name__.endswith(_WITH_HEAD)
    copies = {
        plain_name(name): module.modules_to_save[adapter_name]
        for name, module in base.named_modules()
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save
    }
    return tuple(
        SavedModule(name, sum(p.numel() for p in copy.parameters()))
        for name, copy in copies.items()
        if not (has_head and name.endswith(FULL_NAMES))
    )


def _check(entry: str, name: str, modules: Modules, model: nn.Module) -> None:
    """Refuse a module that PEFT does not train whole, or does by itself."""
    module, given = modules[name], f"modules_to_save entry {entry!r}"
    kind = type(module).__name__
    if isinstance(module, _CONTAINERS):
        raise UnsupportedModule(
            f"{given} names {name!r}, a {kind}, which PEFT does not save whole; name the modules "
            "inside it"
        )
    if not any(True for _ in module.parameters()):
        raise UnsupportedModule(
            f"{given} names {name!r}, a {kind}, which has no parameters to train; leave it out"
        )
    if any(not p.is_floating_point() or p.itemsize < 2 for p in module.parameters()):
        raise UnsupportedModule(
            f"{given} names {name!r}, whose weights are quantised and cannot train; leave it out, or "
            "take a checkpoint that is not quantised"
        )
    parameters = {key for key, _ in module.named_parameters(remove_duplicate=False)}
    if buffers := sorted(module.state_dict().keys() - parameters):
        raise UnsupportedModule(
            f"{given} names {name!r}, which keeps {buffers[0]!r} beside its parameters, and nothing "
            "but parameters is written; leave it out"
        )
    head = _head_around(name, modules, model)
    if head is not None and head != name:
        raise UnsupportedModule(
            f"{given} names {name!r}, which is part of {head!r}, and PEFT trains that whole by itself "
            "for this task; leave it out"
        )


def _head_around(name: str, modules: Modules, model: nn.Module) -> str | None:
    if not type(model).__name__.endswith(_WITH_HEAD):
        return None
    heads = (n for n in modules if n.endswith(FULL_NAMES))
    return next((head for head in heads if is_inside(name, head)), None)


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Names of the modules that own a parameter, by its identity; several where it is tied."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return found


def _describe(name: str, module: nn.Module, owners: dict[int, list[str]]) -> SavedModule:
    parameters = list(module.parameters())
    others = (n for p in parameters for n in owners[id(p)] if not is_inside(n, name))
    return SavedModule(name, sum(p.numel() for p in parameters), next(others, None))


def _near(entry: str, modules: Modules) -> str:
    """Suggest names of modules that have parameters."""
    names = [n for n, m in modules.items() if any(True for _ in m.parameters())]
    names = [n for n in names if not isinstance(modules[n], _CONTAINERS)]
    endings = sorted(
        {n.rpartition(".")[2] for n in names if not n.rpartition(".")[2].isdigit()}
    )
    pool = names if "." in entry else endings
    last = entry.rpartition(".")[2]
    near = difflib.get_close_matches(entry, pool, n=_MOST_NEAR, cutoff=0.5)
    near = near or difflib.get_close_matches(last, endings, n=_MOST_NEAR, cutoff=0.5)
    return f"Near names: {', '.join(near)}" if near else f"Modules end in: {', '.join(endings)}"
