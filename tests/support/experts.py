"""Tiny mixtures whose experts are fused, and what torch and PEFT say of them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from families.registry import FAMILIES
from fimlora.model.experts.fused import fused_experts
from fimlora.model.experts.wrapped import carriers_of_parameters
from fimlora.numerics.seeded_draws import draw_lora_a
from fimlora.plan import TargetModule

MIXTURES = (
    "mixtral",
    "qwen2_moe",  # shared experts, and a dense layer
    "qwen3_moe",  # a dense layer
    "qwen3_next",  # shared experts, and linear attention
    "deepseek_v3",  # shared experts, and a dense layer
    "gpt_oss",  # matrices that are transposed, biases, gates and ups in turn
    "glm4_moe",
    "llama4_text",  # transposed too, and PEFT does not know it
)
# One of each way to hold experts: enough where all families run the same code.
KINDS = ("qwen2_moe", "gpt_oss", "llama4_text")
# A linear map beside the experts that each of them has.
LINEAR = "o_proj"
SCALE = 2


def mixture(name: str) -> nn.Module:
    """A tiny model, drawn from a seed, whose routers and experts are far from alike."""
    model = FAMILIES[f"{name}/causal_lm"].pretrained()
    generator = torch.Generator().manual_seed(1)
    for path, parameter in model.named_parameters():
        if parameter.dim() == 3 or path.endswith(("gate.weight", "router.weight")):
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.2 * drawn)
    return model


def mixture_batches() -> list[dict[str, Tensor]]:
    """Two batches of sentences of unlike lengths, padded on the right."""
    generator = torch.Generator().manual_seed(2)
    return [_batch(lengths, generator) for lengths in ([9, 4, 7], [6, 9])]


def _batch(lengths: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(3, 60, (len(lengths), max(lengths)), generator=generator)
    mask = torch.tensor([[int(t < n) for t in range(max(lengths))] for n in lengths])
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def n_tokens(batches: Sequence[dict[str, Tensor]]) -> int:
    """Tokens that are no padding."""
    return int(sum(batch["attention_mask"].sum() for batch in batches))


def expert_gradients(
    model: nn.Module, batches: Sequence[dict[str, Tensor]], modules: Sequence[TargetModule]
) -> dict[str, Tensor]:
    """Gradients of fused parameters (N E . .), by one backward pass per example."""
    own = copy.deepcopy(model)
    found: dict[str, list[Tensor]] = {module.name: [] for module in modules}
    for batch in batches:
        for row in range(len(batch["labels"])):
            own.zero_grad()
            own(**{key: value[row : row + 1] for key, value in batch.items()}).loss.backward()
            for name, gradients in found.items():
                parameter = own.get_parameter(name)
                gradient = parameter.grad
                gradients.append(
                    torch.zeros_like(parameter) if gradient is None else gradient.clone()
                )
    return {name: torch.stack(gradients).double() for name, gradients in found.items()}


def with_experts(model: nn.Module, *, rank: int = 3, **options: Any) -> Any:
    """The model with stock PEFT's LoRA on all its fused experts."""
    names = [*fused_experts(model)]
    fields: dict[str, Any] = {"target_modules": [], "task_type": "CAUSAL_LM"} | options
    config = LoraConfig(r=rank, lora_alpha=SCALE * rank, target_parameters=names, **fields)
    return get_peft_model(model, config).eval()


def lora_b_squares_of_experts(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    modules: Sequence[TargetModule],
    *,
    rank: int,
    seed: int,
) -> dict[str, Tensor]:
    """Sum over batches of the squared gradient of all B of a parameter, by a real PEFT model."""
    peft_model = with_experts(copy.deepcopy(model), rank=rank)
    layers: dict[str, Any] = dict(carriers_of_parameters(peft_model.get_base_model()))
    for module in modules:
        A = layers[module.name].lora_A["default"].weight
        A.data.copy_(draw_lora_a(module, rank=rank, seed=seed))
    sums = {m.name: torch.zeros(m.d_out, rank * m.n_matrices).double() for m in modules}
    for batch in batches:
        peft_model.zero_grad()
        peft_model(**batch).loss.backward()
        for name in sums:
            sums[name] += layers[name].lora_B["default"].weight.grad.double().square()
    return sums
