"""What stock PEFT makes of an adapter: resolved settings, training, comparison."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fimlora.plan import RankPlan


def resolved(
    peft_model: nn.Module, adapter: str = "default"
) -> dict[str, tuple[int, float, float]]:
    """(r, alpha, scaling) that PEFT gave each module, by its name in the base model."""
    return {
        name: (layer.r[adapter], layer.lora_alpha[adapter], layer.scaling[adapter])
        for name, layer in lora_layers(peft_model).items()
    }


def planned(plan: RankPlan) -> dict[str, tuple[int, float, float]]:
    """The same from the plan."""
    return {
        m.name: (plan.ranks[m.name], plan.alpha(m.name), float(plan.scale))
        for m in plan.modules
        if plan.ranks[m.name]
    }


def lora_layers(peft_model: nn.Module) -> dict[str, Any]:
    """LoRA layers by their name in the base model."""
    base = peft_model.get_base_model()
    return {n: m for n, m in base.named_modules() if isinstance(m, LoraLayer)}


def lora_parameters(peft_model: nn.Module) -> int:
    """Trainable parameters of the adapter, heads that are trained in full aside."""
    return sum(p.numel() for n, p in peft_model.named_parameters() if ".lora_" in n)


def updates(peft_model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """The change of every adapted weight."""
    return {
        name: layer.get_delta_weight(adapter).detach().clone()
        for name, layer in lora_layers(peft_model).items()
    }


def lora_tensors(peft_model: nn.Module) -> dict[str, Tensor]:
    """Copies of all LoRA tensors by their name."""
    return {n: p.detach().clone() for n, p in peft_model.named_parameters() if ".lora_" in n}


def train(peft_model: nn.Module, batch: Mapping[str, Tensor], *, steps: int) -> None:
    """AdamW with decay and clipping, on the LoRA tensors only, without dropout."""
    parameters = [p for n, p in peft_model.named_parameters() if ".lora_" in n]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01)
    peft_model.eval()
    for _ in range(steps):
        optimiser.zero_grad()
        peft_model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()


def uniform_peft(
    model: nn.Module, targets: list[str], *, r: int = 4, **options: Any
) -> nn.Module:
    """A fresh uniform adapter, as a user of PEFT would make it."""
    options = {
        "lora_alpha": 2 * r,
        "fan_in_fan_out": type(model).__name__.startswith("GPT2"),
    } | options
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(model, LoraConfig(r=r, target_modules=targets, **options))
