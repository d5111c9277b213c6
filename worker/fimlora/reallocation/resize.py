"""An adapter that is being trained, resized to a plan together with its optimizer's state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import nn
from torch.optim import Optimizer

from fimlora.adapter.live import LiveAdapter, install_layers, live_adapter, resized_layers
from fimlora.errors import InvalidOption
from fimlora.plan import RankPlan
from fimlora.reallocation.optimizer_state import (
    carried_state,
    check_trained,
    replace_parameter,
)


@dataclass(frozen=True, slots=True)
class Moved:
    """What a resize has done.

    Attributes:
        ranks: Rank by module name, before and after, of the modules that changed.
        errors: What was cut of the update ``B A``, as a share of its Frobenius norm, by name of the
            modules that shrank.
    """

    ranks: Mapping[str, tuple[int, int]]
    errors: Mapping[str, float]


def resize_with_state(
    model: nn.Module,
    optimizer: Optimizer,
    plan: RankPlan,
    adapter_name: str = "default",
    *,
    seed: int = 0,
) -> Moved:
    """Give every layer of an adapter its planned rank, and its optimizer what it knew of it.

    A layer that grows does what it did: its rows and columns stay, new columns of B are zero. Of one
    that shrinks the least is cut, by the singular values of its update. Between two optimizer steps,
    that is, while no gradient waits to be used.

    Args:
        model: A model that carries LoRA.
        optimizer: What trains it, or what `accelerate` has wrapped around that.
        plan: The plan, for exactly the modules that the adapter is on.
        adapter_name: The adapter's name.
        seed: Seed of new rows of A; the global random state is not touched.

    Returns:
        What changed.

    Raises:
        InvalidOption: The plan is for other modules, has a rank below 1 or changes scales.
        UnsupportedModule: The optimizer's state cannot be carried over.
    """  # noqa: DOC502 - the helpers raise
    if plan.scaling != "constant":
        raise InvalidOption(
            f"the plan has scaling={plan.scaling!r}, under which modules of another rank get another "
            "scale and so another function; while training it stays: allocate without alpha"
        )
    adapter = live_adapter(model, adapter_name)
    before = adapter.ranks
    resized = {
        name: layer
        for name, layer in resized_layers(adapter, plan, seed=seed).items()
        if len(layer.A) != before[name]
    }
    old = _parameters(adapter, resized)
    check_trained(optimizer, old)
    states = {
        key: carried_state(
            optimizer, old[key], resized[key.rpartition(" ")[0]], is_A=key.endswith("A")
        )
        for key in old
    }
    install_layers(adapter, resized, plan)  # nothing fails from here on
    for key, new in _parameters(adapter, resized).items():
        replace_parameter(optimizer, old[key], new, states[key])
    return Moved(
        {name: (before[name], len(layer.A)) for name, layer in resized.items()},
        {name: layer.error for name, layer in resized.items() if layer.rotation is not None},
    )


def _parameters(adapter: LiveAdapter, names: Mapping[str, object]) -> dict[str, nn.Parameter]:
    """A and B of some modules, by the module's name and their own."""
    found: dict[str, nn.Parameter] = {}
    for name in names:
        for letter, linear in zip("AB", adapter.matrices(name), strict=True):
            found[f"{name} {letter}"] = cast("nn.Parameter", linear.weight)
    return found
