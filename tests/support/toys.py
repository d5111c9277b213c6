"""Small hand-made models, each of which has one habit that hooks trip over."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH = 6


class Toy(nn.Module):
    """Two biased linear maps and what happens between them."""

    def __init__(self, between: Callable[["Toy", Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.unused = nn.Linear(WIDTH, WIDTH)
        self.between = between

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:  # scale: for the loss
        return self.second(self.between(self, self.first(x)))


def squared_sum(outputs: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """A loss per example that has curvature."""
    return outputs.flatten(1).square().sum(dim=1) * batch["scale"]


BETWEEN: dict[str, Callable[[Toy, Tensor], Tensor]] = {
    "plain": lambda toy, h: torch.relu(h + 1),
    # A biased Linear gives a view of its result; changing that drops a plain tensor hook.
    "in_place": lambda toy, h: h.add_(1).relu_(),
    "first_called_twice": lambda toy, h: torch.tanh(toy.first(torch.relu(h))),
    "second_called_twice": lambda toy, h: toy.second(h) * h,
    "checkpointed": lambda toy, h: checkpoint(
        lambda v: torch.tanh(toy.first(torch.relu(v))), h, use_reentrant=False
    ),
    "checkpointed_reentrantly": lambda toy, h: checkpoint(
        lambda v: torch.tanh(toy.first(torch.relu(v))), h, use_reentrant=True
    ),
    "tokens_in_one_axis": lambda toy, h: torch.tanh(
        toy.first(h.flatten(0, 1)).unflatten(0, h.shape[:2])
    ),
    "shared_by_examples": lambda toy, h: h * toy.first(torch.ones(1, h.shape[1], WIDTH).to(h)),
}


def make_toy(between: str) -> Toy:
    """A toy in float64, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Toy(BETWEEN[between]).double()


def toy_batch(n_examples: int = 3, n_tokens: int = 4) -> dict[str, Tensor]:
    """Random inputs, and a scale that makes examples count differently."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n_examples, n_tokens, WIDTH, generator=generator, dtype=torch.float64)
    return {"x": x, "scale": torch.linspace(0.5, 2, n_examples, dtype=torch.float64)}


def toy_gradients(between: str, batch: Mapping[str, Tensor], name: str) -> Tensor:
    """Weight gradients (N O I) of a toy's module, by one backward pass per example."""
    toy, found = make_toy(between), []
    for row in range(len(batch["x"])):
        example = {key: value[row : row + 1] for key, value in batch.items()}
        toy.zero_grad()
        squared_sum(toy(**example), example).sum().backward()
        gradient = toy.get_submodule(name).weight.grad
        assert gradient is not None
        found.append(gradient.clone())
    return torch.stack(found)
