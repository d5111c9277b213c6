"""What the product must agree with: transformers' own loss, torch's autograd, stock PEFT.

Nothing here uses the product: a freshly loaded model, one example at a time without padding,
and ``dL/dW`` of every linear map.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from families.registry import N_CLASSES, Family
from families.rows import Example

SCALE = 2
# Logits that differ by so much of the largest are of other experts, not of other rounding.
FAR = 0.05
PREFIX = "base_model.model."


def load_base(family: Family, checkpoint: Path, *, seed: int, dtype: torch.dtype) -> nn.Module:
    """The model as a user of transformers loads it; what the checkpoint lacks is drawn."""
    options = {"num_labels": N_CLASSES} if family.kind == "classification" else {}
    torch.manual_seed(seed)
    model: nn.Module = family.model_class.from_pretrained(checkpoint, dtype=dtype, **options)
    return model.eval()


def give_head(model: nn.Module, adapter: Path) -> nn.Module:
    """Put the tensors of an adapter file that are no LoRA where their names say."""
    parameters = dict(model.named_parameters())
    for name, value in load_file(adapter / "adapter_model.safetensors").items():
        if ".lora_" not in name:
            parameters[name.removeprefix(PREFIX)].data.copy_(value)
    return model


def example_energies(
    model: nn.Module, found: list[Example], names: list[str]
) -> dict[str, Tensor]:
    """``||dL/dW||_F^2`` of every example (N) per module, by one backward pass each.

    A weight that modules share is given to each of them apart, as an adapter would be. Each
    example gets a model of its own, as some change themselves once they have seen a short one.
    """
    energies: dict[str, list[float]] = {name: [] for name in names}
    for example in found:
        own = copy.deepcopy(model)
        for parameter in own.parameters():
            parameter.requires_grad_(False)
        weights = []
        for name in names:
            if is_parameter(own, name):
                weights.append(own.get_parameter(name).requires_grad_(True))
                continue
            module = own.get_submodule(name)
            module.weight = nn.Parameter(module.weight.detach().clone())
            weights.append(module.weight)
        gradients = torch.autograd.grad(own(**example).loss, weights, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            energy = 0.0 if gradient is None else gradient.double().square().sum().item()
            energies[name].append(energy)
    return {n: torch.tensor(found, dtype=torch.float64) for n, found in energies.items()}


def reads_padding(model: nn.Module, alone: list[Example], padded: list[Example]) -> bool:
    """Whether a model by itself gives an example another loss beside padding.

    One that does not run without it does, and one that does not run at all does not.
    """
    pairs = [[_loss(model, e) for e in pair] for pair in zip(alone, padded, strict=True)]
    return not all(
        beside is None or (own is not None and math.isclose(own, beside, rel_tol=1e-5))
        for own, beside in pairs
    )


def routes_by_rounding(
    model: nn.Module, alone: Sequence[Example], together: Sequence[Example]
) -> bool:
    """Whether a model by itself gives an example far other logits in a batch, in its precision.

    In half precision scores of a router may be so close that how many examples are beside one
    decides to which experts a token goes.

    Args:
        model: The model.
        alone: Examples one by one.
        together: Batches of the same, in order.
    """
    rows = (
        (logits_of(model, batch)[row], batch["attention_mask"][row].bool())
        for batch in together
        for row in range(len(batch["input_ids"]))
    )
    for example, (logits, is_token) in zip(alone, rows, strict=True):
        own = logits_of(model, example)[0]
        if (logits[is_token] - own).abs().max() > FAR * own.abs().max():
            return True
    return False


def runs(model: nn.Module, example: Example) -> bool:
    """Whether a model has a loss for an example, and no error."""
    return _loss(model, example) is not None


def _loss(model: nn.Module, example: Example) -> float | None:
    try:
        with torch.no_grad():
            return float(copy.deepcopy(model)(**example).loss)
    except (RuntimeError, ValueError):
        return None


def is_parameter(model: nn.Module, name: str) -> bool:
    """Whether a name is that of one parameter that holds the matrices of all experts."""
    owner, _, leaf = name.rpartition(".")
    parameter = getattr(model.get_submodule(owner), leaf, None)
    return isinstance(parameter, nn.Parameter) and parameter.dim() == 3


def fused_parameters(model: nn.Module) -> list[str]:
    """All of them that hold the matrices of experts."""
    return [n for n, p in model.named_parameters() if p.dim() == 3 and ".experts." in n]


def _size(model: nn.Module, name: str) -> int:
    if is_parameter(model, name):
        return model.get_parameter(name).numel()
    weight: Tensor = model.get_submodule(name).weight
    return weight.numel()


def exact_scores(model: nn.Module, energies: Mapping[str, Tensor]) -> dict[str, float]:
    """``s^2 E ||dL/dW||_F^2 / (3 d_in d_out)``."""
    return {
        name: SCALE**2 * values.mean().item() / (3 * _size(model, name))
        for name, values in energies.items()
    }


def linear_maps(model: nn.Module) -> list[str]:
    """All of them, the head included."""
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]


@dataclass(frozen=True)
class Adapted:
    """What stock PEFT makes of an adapter.

    Attributes:
        settings: Rank and scale of every module it adapts, by name in the base model.
        n_parameters: What it would train of LoRA.
        logits: The model's, on some batch.
        missing: What it said it did not find.
    """

    settings: dict[str, tuple[int, float]]
    n_parameters: int
    logits: Tensor
    missing: tuple[str, ...]


def load_adapted(base: nn.Module, adapter: Path, batch: Mapping[str, Tensor]) -> Adapted:
    """Load an adapter onto a freshly loaded base model."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model: Any = PeftModel.from_pretrained(base, str(adapter), is_trainable=True).eval()
    layers = {
        _adapted(name, module): module
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    }
    return Adapted(
        {
            name: (layer.r["default"], layer.scaling["default"])
            for name, layer in layers.items()
        },
        sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n),
        logits_of(model, batch),
        tuple(str(w.message) for w in said if "missing" in str(w.message).lower()),
    )


def _adapted(name: str, layer: Any) -> str:
    """What a layer is on: a module, or a parameter of the one inside it."""
    parameter = getattr(layer, "parameter_name", None)
    return f"{name.replace('.base_layer', '')}.{parameter}" if parameter else name


def logits_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Without a gradient."""
    with torch.no_grad(), deterministic():
        logits: Tensor = model(**batch).logits
    return logits


@contextmanager
def deterministic() -> Iterator[None]:
    """Models that draw something in evaluation draw the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
