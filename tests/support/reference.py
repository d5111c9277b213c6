"""What the engine must agree with: plain autograd, one example or one batch at a time."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from fimlora.numerics.seeded_draws import draw_lora_a
from fimlora.plan import TargetModule


def lora_b_squares_by_peft(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    modules: Sequence[TargetModule],
    *,
    rank: int,
    seed: int,
    scale: int,
) -> dict[str, Tensor]:
    """Sum over batches of the squared gradient of B, by a real PEFT model and its own loss."""
    config = LoraConfig(
        r=rank,
        lora_alpha=scale * rank,
        target_modules=[module.name for module in modules],
        lora_dropout=0.0,
        fan_in_fan_out=modules[0].fan_in_fan_out,
    )
    peft_model = get_peft_model(copy.deepcopy(model), config).eval()
    layers = {m.name: peft_model.base_model.model.get_submodule(m.name) for m in modules}
    for module in modules:
        A = layers[module.name].lora_A["default"].weight
        A.data.copy_(draw_lora_a(module, rank=rank, seed=seed))
    sums = {m.name: torch.zeros(m.d_out, rank, dtype=torch.float64) for m in modules}
    for batch in batches:
        peft_model.zero_grad()
        peft_model(**batch).loss.backward()
        for name, layer in layers.items():
            sums[name] += layer.lora_B["default"].weight.grad.double().square()
    return sums


def weight_gradients_by_example(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], modules: Sequence[TargetModule]
) -> dict[str, Tensor]:
    """Full weight gradients (N O I), by one backward pass per example."""
    examples = [
        {name: value[row : row + 1] for name, value in batch.items()}
        for batch in batches
        for row in range(len(batch["labels"]))
    ]
    return _weight_gradients(model, examples, modules, _loss)


def weight_gradients_by_batch(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], modules: Sequence[TargetModule]
) -> dict[str, Tensor]:
    """Full weight gradients (B O I), by one backward pass per batch and the model's own loss."""
    return _weight_gradients(model, batches, modules, lambda model, batch: model(**batch).loss)


def _weight_gradients(
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    modules: Sequence[TargetModule],
    loss_of: Callable[[nn.Module, Mapping[str, Any]], Tensor],
) -> dict[str, Tensor]:
    model = copy.deepcopy(model).eval()
    found: dict[str, list[Tensor]] = {module.name: [] for module in modules}
    for batch in batches:
        model.zero_grad()
        loss_of(model, batch).backward()
        for module in modules:
            G = model.get_submodule(module.name).weight.grad.clone()
            found[module.name].append(G.T if module.fan_in_fan_out else G)
    return {name: torch.stack(gradients) for name, gradients in found.items()}


def _loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The model's own loss, without the cast to float32 that some models put before it."""
    logits, labels = model(**batch).logits, batch["labels"]
    if logits.dim() == 3:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return functional.cross_entropy(logits, labels)


def relative_error(found: Any, wanted: Any) -> float:
    """Norm of the difference over the norm of what was wanted."""
    found, wanted = (torch.as_tensor(value, dtype=torch.float64) for value in (found, wanted))
    assert found.shape == wanted.shape
    return ((found - wanted).norm() / wanted.norm()).item()


def matrix_with(values: Sequence[float], d_out: int, d_in: int) -> Tensor:
    """A matrix of given singular values between random directions."""
    values = torch.as_tensor(values, dtype=torch.float64)
    U = torch.linalg.qr(torch.randn(d_out, len(values), dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(d_in, len(values), dtype=torch.float64)).Q
    return (U * values) @ V.T
