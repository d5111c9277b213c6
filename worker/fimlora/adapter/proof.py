"""Prove an adapter before it is written: stock PEFT must make of it what was planned.

The installed PEFT is given the very config, on the model's tree without weights; what it
builds is compared with the plan, and with the tensors that are to be written.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import nn

from fimlora.adapter.config import LEFT_OUT
from fimlora.adapter.model_classes import NOT_FOR, NamedTree, counterparts, name_facts
from fimlora.errors import AdapterMismatch
from fimlora.model.outline import outline
from fimlora.model.peft_trial import Adapted, PeftRefusal, adapt, unadaptable_by_peft
from fimlora.model.targets import base_model_of
from fimlora.plan import RankPlan
from fimlora.whole_names import FULL_NAMES, is_inside

Shapes = Mapping[str, tuple[int, ...]]


def prove(
    plan: RankPlan,
    config: Mapping[str, Any],
    model: nn.Module,
    *,
    width: int | None = None,
    tensors: Shapes | None = None,
) -> None:
    """See that stock PEFT adapts the planned modules by the planned ranks, and nothing else.

    Args:
        plan: The plan.
        config: The content of ``adapter_config.json``.
        model: The base model, loaded or a skeleton; it is not touched.
        width: The rank that layout C pads every module to.
        tensors: Shape by name of what ``adapter_model.safetensors`` is to hold, if it is to
            be written.

    Raises:
        AdapterMismatch: PEFT refuses it or makes something else of it; the message has the
            first difference.
    """
    wanted = {name: width or rank for name, rank in plan.ranks.items() if rank}
    try:
        adapted = adapt(model, config, with_tensors=tensors is not None)
    except PeftRefusal as error:
        raise AdapterMismatch(
            f"PEFT refuses this adapter on {type(model).__name__}: {error}"
        ) from error
    differences = chain(_saved(config, adapted), _differences(plan, wanted, adapted, tensors))
    for difference in differences:
        raise AdapterMismatch(
            f"PEFT makes something else of this adapter on {type(model).__name__} than was "
            f"planned: {difference}"
        )


def settle_names(
    plan: RankPlan, model: nn.Module, other: nn.Module | None
) -> tuple[RankPlan, list[str]]:
    """Find out which classes the names of an adapter can be for, before its config is made.

    Args:
        plan: The plan.
        model: The base model, loaded or a skeleton.
        other: What the same checkpoint is as another class, if there is such a thing.

    Returns:
        The plan, whose provenance says so, and the names of all modules that its targets must
        be told from.
    """
    tree, second = _tree(model), None if other is None else _tree(other)
    facts = name_facts(plan.modules, tree, second, saved=plan.saved)
    names = list(tree.modules)
    if second is not None and LEFT_OUT in facts:
        meant = counterparts(plan.modules, second, facts[LEFT_OUT])
        if unadaptable_by_peft(other, list(meant.values())):  # type: ignore[arg-type]
            facts = name_facts(plan.modules, tree) | {NOT_FOR: second.model_class}
        else:
            names += set(second.modules) - set(meant.values())
    return replace(plan, provenance=dict(plan.provenance) | facts), names


def prove_on_other(
    plan: RankPlan, config: Mapping[str, Any], other: nn.Module, *, width: int | None = None
) -> None:
    """Prove a config on the other class, if its names are to hold there.

    Args:
        plan: The plan, as `settle_names` gave it.
        config: The content of ``adapter_config.json``.
        other: The model of the other class.
        width: The rank that layout C pads every module to.
    """
    if LEFT_OUT not in plan.provenance:
        return
    names = counterparts(plan.modules, _tree(other), plan.provenance[LEFT_OUT])
    renamed = replace(
        plan,
        modules=tuple(replace(m, name=names[m.name]) for m in plan.modules),
        ranks={names[name]: rank for name, rank in plan.ranks.items()},
        scores={names[name]: score for name, score in plan.scores.items()},
        controls={},
    )
    prove(renamed, config, other, width=width)


def _tree(model: nn.Module) -> NamedTree:
    base = base_model_of(model)
    return NamedTree(
        type(base).__name__, [name for name, _ in outline(base).named_modules() if name]
    )


def _differences(
    plan: RankPlan, wanted: Mapping[str, int], adapted: Adapted, tensors: Shapes | None
) -> Iterator[str]:
    for name in adapted.parameters:
        if name not in wanted:
            yield f"it puts LoRA on the parameter {name!r}"
    for name, rank in wanted.items():
        if name not in adapted.ranks:
            yield f"{name!r} gets no LoRA instead of rank {rank}"
        elif adapted.ranks[name] != rank:
            yield f"{name!r} gets rank {adapted.ranks[name]} instead of {rank}"
        elif not math.isclose(adapted.scales[name], scale := plan.scale_of(name), rel_tol=1e-9):
            yield f"{name!r} gets scale {adapted.scales[name]:g} instead of {scale:g}"
    for name, rank in adapted.ranks.items():
        if name not in wanted and name not in adapted.parameters:
            yield f"{name!r} gets LoRA of rank {rank}, and is not in the plan"
    n_planned = sum(wanted[m.name] * m.held_cost for m in plan.modules if m.name in wanted)
    if adapted.n_lora_parameters != n_planned:
        yield f"{adapted.n_lora_parameters:,} parameters train instead of {n_planned:,}"
    if tensors is not None and adapted.tensors is not None:
        yield from _misfits(adapted.tensors, adapted.lost, tensors)


def _saved(config: Mapping[str, Any], adapted: Adapted) -> Iterator[str]:
    """Modules that train whole and are not named, and those that are named and do not."""
    named = config.get("modules_to_save") or ()
    for name in adapted.saved:
        is_named = any(name == each or name.endswith(f".{each}") for each in named)
        if not is_named and not name.endswith(FULL_NAMES):  # which PEFT adds of a classifier
            yield f"{name!r} trains whole, and modules_to_save names no such module"
    for each in named:
        if not any(is_inside(n, each) or n.endswith(f".{each}") for n in adapted.saved):
            yield f"{each!r} does not train whole"


def _misfits(wanted: Shapes, lost: Iterable[str], tensors: Shapes) -> Iterator[str]:
    """What loading the file would miss, not know, or find in another shape."""
    for name, shape in wanted.items():
        if name not in tensors:
            yield f"the file of weights lacks {name!r}"
        elif tensors[name] != shape:
            yield f"{name!r} has shape {tensors[name]} in the file instead of {shape}"
    for name in tensors:
        if name not in wanted:
            yield f"the file of weights holds {name!r}, which nothing reads"
    for name in lost:
        yield f"{name!r} is not found again when the file of weights is loaded"
