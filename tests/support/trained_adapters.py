"""Trained adapters as stock PEFT saves them, on tiny models, and what PEFT makes of a folder."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from support.models import tiny
from support.peft_models import lora_layers, uniform_peft, updates


def save_trained(
    name: str, folder: Path, *, r: int = 6, dtype: torch.dtype | None = None, **options: Any
) -> nn.Module:
    """Save an adapter of which A and B are drawn, some directions far stronger than others."""
    model, targets = tiny(name)
    peft_model = uniform_peft(model, targets, r=r, **options)
    generator = torch.Generator().manual_seed(3)
    for number, layer in enumerate(lora_layers(peft_model).values()):
        for factors in (layer.lora_A, layer.lora_B):
            weight = factors["default"].weight
            drawn = torch.randn(weight.shape, generator=generator)
            rank = layer.r["default"]
            strength = torch.linspace(1, 0.1, rank) ** (1 + number % 3)
            by_row = drawn * (strength[:, None] if factors is layer.lora_A else strength)
            weight.data = (by_row * (0.2 + 0.3 * (number % 4))).to(dtype or weight.dtype)
    peft_model.save_pretrained(folder)
    return peft_model


def reloaded(name: str, folder: Path) -> dict[str, Tensor]:
    """Update per module of a folder, through a model that stock PEFT loads it into."""
    model, _ = tiny(name)
    return updates(PeftModel.from_pretrained(model, folder))


def references(folder: Path, peft_model: nn.Module) -> dict[str, Tensor]:
    """``s * B @ A`` per module in float64, from the tensors in the file and PEFT's scale."""
    tensors = load_file(folder / "adapter_model.safetensors")
    found = {}
    for name, layer in lora_layers(peft_model).items():
        A = tensors[f"base_model.model.{name}.lora_A.weight"].double()
        B = tensors[f"base_model.model.{name}.lora_B.weight"].double()
        found[name] = layer.scaling["default"] * (B @ A)
    return found


def edit_config(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_tensors(folder: Path, edit: Any) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
