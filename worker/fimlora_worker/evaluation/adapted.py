"""A base model with the adapter of an arm on it, as stock PEFT makes it from the plan.

The model is read from its files for every run: nothing that an earlier run has trained can be
left on it. The start is the same in all arms: the head as calibration loads it, and of each
A as many of the same random rows as the arm's rank asks for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.adapter.config import build_adapter_config
from fimlora.adapter.live import LiveAdapter, live_adapter
from fimlora.adapter.stacked import only_selected, per_expert
from fimlora.errors import AdapterMismatch
from fimlora.numerics.seeded_draws import draw_embedding_b, draw_lora_a
from fimlora.plan import RankPlan, TargetModule
from fimlora_worker.inputs.base_model import BaseModel, set_padding
from fimlora_worker.inputs.heads import TASK_TYPES, ModelRequest
from fimlora_worker.inputs.models import load_model


@dataclass(frozen=True)
class Adapted:
    """A model to be trained.

    Attributes:
        model: A PEFT model.
        adapter_parameters: Of A and B; of fused experts, those of the experts that train.
        trainable_parameters: These and those of the head and of modules that are saved whole.
    """

    model: nn.Module
    adapter_parameters: int
    trainable_parameters: int


def training_request(request: ModelRequest) -> ModelRequest:
    """How a model is loaded for training: on a CPU in single precision."""
    return replace(request, dtype="float32") if request.device == "cpu" else request


def adapt(
    base: BaseModel, plan: RankPlan, *, seed: int, head: Mapping[str, Tensor] | None = None
) -> Adapted:
    """Load the base model and put the plan's adapter on it.

    Args:
        base: The base model.
        plan: The plan.
        seed: Of the rows of A.
        head: Tensors that the head starts from, by their names in the base model, instead of
            those that are drawn.

    Raises:
        AdapterMismatch: PEFT makes something else of the plan.
    """
    from peft import LoraConfig, get_peft_model

    loaded = load_model(base.folder, base.config, training_request(base.request)).model
    set_padding(loaded.config, base.pad_token_id)
    _start_head(loaded, head or {})
    config = build_adapter_config(
        plan,
        base_model=str(loaded.name_or_path),
        task_type=TASK_TYPES[base.request.task],
        modules_to_save=base.whole_modules(),
    )
    model: Any = get_peft_model(loaded, LoraConfig(**config))
    adapter = live_adapter(model, experts=True)
    _start_adapter(adapter, plan, seed=seed)
    for parameter in model.parameters():
        if parameter.requires_grad:  # half precision would round small steps away
            parameter.data = parameter.data.float()
    return _counted(model, adapter, plan)


def _start_head(model: nn.Module, head: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in head.items():
            model.get_parameter(name).copy_(tensor)


def _start_adapter(adapter: LiveAdapter, plan: RankPlan, *, seed: int) -> None:
    wanted = {name: rank for name, rank in plan.ranks.items() if rank}
    if adapter.ranks != wanted:
        odd = sorted(set(adapter.ranks.items()) ^ set(wanted.items()))[:4]
        raise AdapterMismatch(f"PEFT's ranks are not the plan's: {odd}")
    modules = {module.name: module for module in plan.modules}
    with torch.no_grad():
        for name, rank in wanted.items():
            A, B = adapter.factors(name)
            if modules[name].is_embedding:  # whose B is the random one
                B.copy_(draw_embedding_b(modules[name], rank=rank, seed=seed).T)
            else:
                A.copy_(draw_lora_a(modules[name], rank=rank, seed=seed))
                for part, some in zip((A, B), only_selected(modules[name], A, B), strict=True):
                    part.copy_(some)


def check_others_untouched(adapted: Adapted, plan: RankPlan) -> None:
    """See that no other experts were trained than those that the plan selects.

    Args:
        adapted: The model, after training.
        plan: The plan.

    Raises:
        AdapterMismatch: A or B of another expert is no longer zero, so that it has changed.
    """
    adapter = live_adapter(adapted.model, experts=True)
    for module in _with_selected(plan):
        pairs = per_expert(*adapter.factors(module.name), module.n_matrices)
        for expert, pair in enumerate(pairs):
            if expert not in (module.experts or ()) and any(bool(part.any()) for part in pair):
                raise AdapterMismatch(
                    f"expert {expert} of {module.name!r} is not selected, and training has changed "
                    "its A or B, which begin with zero"
                )


def _with_selected(plan: RankPlan) -> list[TargetModule]:
    return [m for m in plan.modules if m.experts is not None and plan.ranks[m.name]]


def _counted(model: nn.Module, adapter: LiveAdapter, plan: RankPlan) -> Adapted:
    n_held = sum(part.numel() for name in adapter.layers for part in adapter.factors(name))
    not_selected = {
        module.name: sum(
            part.numel()
            for expert, pair in enumerate(
                per_expert(*adapter.factors(module.name), module.n_matrices)
            )
            if expert not in (module.experts or ())
            for part in pair
        )
        for module in _with_selected(plan)
    }
    n_zero = sum(not_selected.values())  # held and counted by PEFT, and never anything else
    if n_held - n_zero != plan.spent.parameters:
        raise AdapterMismatch(
            f"PEFT trains {n_held - n_zero:,} parameters of A and B, the plan has "
            f"{plan.spent.parameters:,}"
        )
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Adapted(model, n_held - n_zero, n_trainable - n_zero)
