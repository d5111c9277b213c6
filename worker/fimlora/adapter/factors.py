"""The A and B that act in a live PEFT model, to be read while it is measured.

Symbols: A (r I) and B (O r) of a module with I input and O output features; the adapter adds
``s * B @ A`` to its weight.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from fimlora.adapter.live import live_adapter
from fimlora.errors import InvalidOption
from fimlora.model.targets import base_model_of
from fimlora.shapes import Float


class Factors(NamedTuple):
    """LoRA of one module.

    Attributes:
        A: As it is in the model (r I).
        B: As it is in the model (O r).
        scale: The effective scale s.
    """

    A: Float[Tensor, "r I"]
    B: Float[Tensor, "O r"]
    scale: int | float


def acting_factors(model: nn.Module, names: Iterable[str]) -> dict[str, Factors]:
    """Find the one adapter that acts on some modules, and its matrices.

    Args:
        model: A model that carries LoRA, through `peft.get_peft_model` or transformers.
        names: Names of modules in the base model's tree.

    Returns:
        The factors by module name; no copies.

    Raises:
        InvalidOption: A module carries no adapter, several act, or none does.
        UnsupportedModule: The adapter is of a kind whose gradient is not that of plain A and B.
    """  # noqa: DOC502 - `live_adapter` raises
    base, adapter, found = base_model_of(model), None, {}
    for name in names:
        layer: Any = base.get_submodule(name)
        acting = [] if getattr(layer, "disable_adapters", True) else layer.active_adapters
        acting = [each for each in acting if each in getattr(layer, "lora_A", {})]
        if len(acting) != 1:
            raise InvalidOption(
                f"{name} has {len(acting)} LoRA adapters that act; gradients of A and B are "
                "measured where exactly one does, on every target module"
            )
        if adapter is None:
            adapter = live_adapter(model, acting[0])
        if acting[0] != adapter.name:
            raise InvalidOption(
                f"adapter {acting[0]!r} acts on {name} and {adapter.name!r} on others; activate one"
            )
        A, B = adapter.matrices(name)
        found[name] = Factors(A.weight.detach(), B.weight.detach(), layer.scaling[adapter.name])
    return found
