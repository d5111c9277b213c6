"""The adapter of a live PEFT model, as its layers are, not as its config says they are."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from fimlora.adapter.trained.lora_config import LoraConfig
from fimlora.adapter.verifying.findings import Fault
from fimlora.adapter.verifying.folder import planned_experts, unplain
from fimlora.adapter.verifying.intended import BaseName, Intended, base_name
from fimlora.adapter.verifying.seen import SeenAdapter, SeenModule
from fimlora.errors import InvalidAdapter
from fimlora.model.compiled import plain_name
from fimlora.model.experts.wrapped import adapted_name, adapts_parameter
from fimlora.model.targets import base_model_of

_FACTORS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
_NOTHING = LoraConfig({})


def see_model(
    model: nn.Module,
    intended: Intended,
    *,
    adapter_name: str = "default",
    base_model: str | None = None,
    subject: str = "the model",
) -> SeenAdapter:
    """Look at an adapter on a model; nothing is changed.

    Args:
        model: A model that carries LoRA, through `peft.get_peft_model` or transformers.
        intended: What was planned.
        adapter_name: The adapter's name.
        base_model: What the base model is called in training, if other than in the plan.
        subject: What to call it.

    Returns:
        What it has.
    """
    model = _unwrapped(model)
    base = base_model_of(model)
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(config, PeftLoraConfig):
        return _without_adapter(model, adapter_name, intended, subject)
    fields = _fields(config)
    layers = {
        adapted_name(plain_name(name), layer): layer
        for name, layer in base.named_modules()
        if isinstance(layer, LoraLayer) and adapter_name in layer.r
    }
    experts = planned_experts(intended)
    fused = [n for n, m in layers.items() if adapts_parameter(m) and n not in experts]
    plain = {n: m for n, m in layers.items() if n not in fused}
    modules = {name: _seen(layer, adapter_name) for name, layer in plain.items()}
    saved = [*_saved(base, adapter_name)]
    return SeenAdapter(
        subject=subject,
        config=LoraConfig(fields),
        modules=modules,
        base=intended.base if base_model else _base(base, fields),
        model_type=getattr(getattr(base, "config", None), "model_type", None),
        saved=tuple(saved),
        parameters=tuple(fused),
        faults=(
            *unplain(fields, intended),
            *_faults_of_layers(layers, fused, adapter_name),
            *_faults_of_config(LoraConfig(fields), modules),
            *_trains_besides(base, saved),
        ),
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, where parallel training holds it."""
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    return model


def _without_adapter(
    model: nn.Module, adapter_name: str, intended: Intended, subject: str
) -> SeenAdapter:
    names = sorted(getattr(model, "peft_config", {})) or "none"
    message = f"the model has no LoRA adapter {adapter_name!r}; it has: {names}"
    fault = Fault("no_adapter", "", "LoRA", "none", message)
    return SeenAdapter(subject, _NOTHING, {}, intended.base, faults=(fault,), is_complete=False)


def _fields(config: PeftLoraConfig) -> dict[str, Any]:
    """A live config as a file would have it."""
    found = dict(config.to_dict())
    return {
        name: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for name, value in found.items()
    }


def _base(base: nn.Module, fields: Mapping[str, Any]) -> BaseName:
    config = getattr(base, "config", None)
    name = fields.get("base_model_name_or_path") or getattr(base, "name_or_path", None)
    return base_name(name, getattr(config, "_commit_hash", None) or fields.get("revision"))


def _seen(layer: Any, adapter_name: str) -> SeenModule:
    A, B = _factors(layer, adapter_name)
    used = trained = experts = None
    n_experts: int = getattr(layer, "num_experts", 1)
    if A is not None and B is not None and A.dim() == B.dim() == 2 and A.numel():
        with torch.no_grad():
            has_row = A.ne(0).any(dim=1).reshape(n_experts, -1)
            has_column = B.ne(0).any(dim=0).reshape(-1, n_experts)
            ranks = (has_row.any(dim=0) | has_column.any(dim=1)).nonzero()
            is_alive = has_row.any(dim=1) | has_column.any(dim=0)
            experts = tuple(is_alive.nonzero()[:, 0].tolist())
        used = int(ranks[-1]) + 1 if len(ranks) else 0
        trained = bool(B.ne(0).any())
    return SeenModule(
        rank=layer.r[adapter_name],
        scale=float(layer.scaling[adapter_name]),
        d_in=layer.in_features,
        d_out=layer.out_features,
        used=used,
        is_trained=trained,
        n_experts=n_experts,
        experts=experts,
    )


def _factors(layer: Any, adapter_name: str) -> tuple[Tensor | None, Tensor | None]:
    """A and B; none where they are spread over processes, so that no value is here."""
    for names in _FACTORS:
        found = [getattr(layer, name, {}) for name in names]
        if all(adapter_name in holder for holder in found):
            tensors = [getattr(h[adapter_name], "weight", h[adapter_name]) for h in found]
            if any(hasattr(tensor, "ds_shape") for tensor in tensors):
                return None, None
            return tensors[0], tensors[1]
    return None, None


def _saved(base: nn.Module, adapter_name: str) -> Iterator[str]:
    for name, module in base.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper) and adapter_name in getattr(
            module, "modules_to_save", ()
        ):
            yield plain_name(name)


def _faults_of_layers(
    layers: Mapping[str, Any], fused: Iterable[str], adapter_name: str
) -> Iterator[Fault]:
    """LoRA on parameters that are not planned, layers that do not train, and merged ones."""
    for name in fused:
        message = f"LoRA is on the parameter {name}, where the plan has modules"
        yield Fault("fused", name, "modules", "a parameter", message)
    for name, layer in layers.items():
        factors = [t for t in _factors(layer, adapter_name) if t is not None]
        if adapter_name in layer.merged_adapters:
            message = f"{name} is merged into its base weight"
            yield Fault("merged", name, "an adapter", "merged", message)
        elif not all(tensor.requires_grad for tensor in factors):
            message = f"A and B of {name} do not train"
            yield Fault("frozen", name, "trained", "frozen", message)


def _faults_of_config(config: LoraConfig, modules: Mapping[str, SeenModule]) -> Iterator[Fault]:
    """Where a clone made from the config, or a load of what is saved, would be another adapter."""
    try:
        known = config.ranks_and_scales([*modules])
    except InvalidAdapter as error:
        yield Fault("config", "", "a sound config", "none", str(error))
        return
    for name, module in modules.items():
        rank, scale = known[name]
        if rank != module.rank or abs(scale - module.scale) > 1e-6 * scale:
            message = (
                f"{name} has rank {module.rank} and scale {module.scale:g}, and {rank} and {scale:g} "
                "by the adapter's config"
            )
            yield Fault("config", name, f"rank {module.rank}", f"rank {rank}", message)


def _trains_besides(base: nn.Module, saved: list[str]) -> Iterator[Fault]:
    """Parameters that train and are neither LoRA's nor of a module trained in full."""
    held = tuple(f"{name}." for name in saved)
    besides = [
        (plain_name(name), parameter.numel())
        for name, parameter in base.named_parameters()
        if parameter.requires_grad and "lora_" not in name
        if not plain_name(name).startswith(held or ("\n",))
    ]
    if besides:
        total = sum(size for _, size in besides)
        message = (
            f"{len(besides)} parameters of the base model train beside the adapter ({total:,} "
            f"numbers), such as {besides[0][0]}"
        )
        yield Fault("trains_besides", "", "frozen", f"{total:,} numbers", message)
