"""Prove an adapter before it is written: stock PEFT must make of it what was planned.

The installed PEFT is given the very config, on the model's tree without weights; what it
builds is compared with the plan, and with the tensors that are to be written.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from fimlora.errors import AdapterMismatch
from fimlora.model.peft_trial import Adapted, PeftRefusal, adapt
from fimlora.plan import RankPlan

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
        adapted = adapt(model, config)
    except PeftRefusal as error:
        raise AdapterMismatch(
            f"PEFT refuses this adapter on {type(model).__name__}: {error}"
        ) from error
    for difference in _differences(plan, wanted, adapted, tensors):
        raise AdapterMismatch(
            f"PEFT makes something else of this adapter on {type(model).__name__} than was "
            f"planned: {difference}"
        )


def _differences(
    plan: RankPlan, wanted: Mapping[str, int], adapted: Adapted, tensors: Shapes | None
) -> Iterator[str]:
    for name in adapted.parameters:
        yield f"it puts LoRA on the parameter {name!r}"
    for name, rank in wanted.items():
        if name not in adapted.ranks:
            yield f"{name!r} gets no LoRA instead of rank {rank}"
        elif adapted.ranks[name] != rank:
            yield f"{name!r} gets rank {adapted.ranks[name]} instead of {rank}"
        elif not math.isclose(adapted.scales[name], plan.scale, rel_tol=1e-9):
            yield f"{name!r} gets scale {adapted.scales[name]:g} instead of {plan.scale:g}"
    for name, rank in adapted.ranks.items():
        if name not in wanted:
            yield f"{name!r} gets LoRA of rank {rank}, and is not in the plan"
    n_planned = sum(wanted[m.name] * m.cost for m in plan.modules if m.name in wanted)
    if adapted.n_lora_parameters != n_planned:
        yield f"{adapted.n_lora_parameters:,} parameters train instead of {n_planned:,}"
    if tensors is not None:
        yield from _misfits(adapted, tensors)


def _misfits(adapted: Adapted, tensors: Shapes) -> Iterator[str]:
    """What loading the file would miss, not know, or find in another shape."""
    for name, shape in adapted.tensors.items():
        if name not in tensors:
            yield f"the file of weights lacks {name!r}"
        elif tensors[name] != shape:
            yield f"{name!r} has shape {tensors[name]} in the file instead of {shape}"
    for name in tensors:
        if name not in adapted.tensors:
            yield f"the file of weights holds {name!r}, which nothing reads"
    for name in adapted.lost:
        yield f"{name!r} is not found again when the file of weights is loaded"
