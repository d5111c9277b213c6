"""LoRA that has been trained, as far as a test can tell: A and B of a live PEFT model are drawn."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from fimlora import find_targets
from support.models import tiny


def trained_adapter(
    name: str, ranks: Sequence[int] = (3, 1, 5, 2), *, scale: float = 1.5, dtype: Any = None
) -> nn.Module:
    """A tiny model with LoRA of uneven ranks and one scale, neither A nor B zero, in eval mode."""
    model, targets = tiny(name)
    modules = find_targets(model, targets)
    of_module = {m.name: ranks[i % len(ranks)] for i, m in enumerate(modules)}
    config = LoraConfig(
        target_modules=[m.name for m in modules],
        rank_pattern=of_module,
        alpha_pattern={n: scale * r for n, r in of_module.items()},
        lora_dropout=0.3,
        fan_in_fan_out=modules[0].fan_in_fan_out,
    )
    adapted = get_peft_model(model, config).eval()
    draws = torch.Generator().manual_seed(1)
    for layer in layers_of(adapted).values():
        for weight in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
            weight.data = torch.randn(weight.shape, generator=draws) * 0.2
    return adapted if dtype is None else adapted.to(dtype)


def layers_of(model: nn.Module) -> dict[str, Any]:
    """LoRA layers by name in the base model's tree."""
    named = model.get_base_model().named_modules()
    return {n: m for n, m in named if hasattr(m, "lora_A") and "default" in m.lora_A}


def examples_of(batches: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Single examples, padding and all."""
    for batch in batches:
        for row in range(len(batch["labels"])):
            yield {name: value[row : row + 1] for name, value in batch.items()}


@contextmanager
def gates_on(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Explicit gates of one on every rank, which autograd sees: the output of A is multiplied."""
    gates, handles = {}, []
    for name, layer in layers_of(model).items():
        gate = gates[name] = torch.ones(layer.r["default"], requires_grad=True)
        hook = layer.lora_A["default"].register_forward_hook(
            lambda module, args, output, gate=gate: output * gate.to(output)
        )
        handles.append(hook)
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()
