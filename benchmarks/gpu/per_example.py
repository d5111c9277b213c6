"""Squared gradients of LoRA-B for each example, by others: the obvious way, and a library."""

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from turns import Batches

from measure import SCORED_RANK


def peft_one_by_one(model: nn.Module) -> Callable[[Batches], Any]:
    """LoRA attached by PEFT, one backward pass for each example."""
    adapted = _adapted(model)
    weights = [p for n, p in adapted.named_parameters() if "lora_B" in n]
    device = weights[0].device

    def run(batches: Batches) -> list[float]:
        squares = [torch.zeros_like(p, dtype=torch.float32) for p in weights]
        for batch in batches:
            for row in range(len(batch["input_ids"])):
                adapted.zero_grad()
                one = {name: value[row : row + 1].to(device) for name, value in batch.items()}
                adapted(**one, use_cache=False).loss.backward()
                for square, weight in zip(squares, weights, strict=True):
                    square.add_(weight.grad.float().square())
        return [square.mean().item() for square in squares]

    return run


def opacus_way(model: nn.Module) -> Callable[[Batches], Any]:
    """LoRA attached by PEFT, the gradients of each example by Opacus in one backward pass."""
    from opacus.grad_sample import GradSampleModule

    adapted = _adapted(model)
    wrapped = GradSampleModule(adapted, batch_first=True, loss_reduction="mean", strict=False)
    weights = [p for n, p in adapted.named_parameters() if "lora_B" in n]
    device = weights[0].device

    def run(batches: Batches) -> list[float]:
        squares = [torch.zeros_like(p, dtype=torch.float32) for p in weights]
        for batch in batches:
            for weight in weights:
                weight.grad_sample = weight.grad = None
            moved = {name: value.to(device) for name, value in batch.items()}
            wrapped(**moved, use_cache=False).loss.backward()
            for square, weight in zip(squares, weights, strict=True):
                square.add_(_stacked(weight.grad_sample).float().square().sum(0))
        return [square.mean().item() for square in squares]

    return run


def _stacked(samples: Any) -> Tensor:
    return samples[-1] if isinstance(samples, list) else samples


def _adapted(model: nn.Module) -> Any:
    config = LoraConfig(r=SCORED_RANK, lora_alpha=2 * SCORED_RANK, target_modules="all-linear")
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    return adapted.train()
