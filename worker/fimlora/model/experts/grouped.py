"""Experts whose sides torch's grouped product does not take: rows must be multiples of 16 bytes.

transformers runs fused experts by ``grouped_mm`` unless it is told otherwise, and with an odd width
torch raises inside of it. The class's own loop, ``eager``, takes any width and is the reference.
"""

from typing import Any, NamedTuple

from torch import nn

from fimlora.model.experts.fused import fused_experts, leaf_of

GROUPED, LOOP = "grouped_mm", "eager"
ROW_BYTES = 16


class Misfit(NamedTuple):
    """Fused experts that cannot be run as they would be.

    Attributes:
        name: The parameter.
        side: The side whose rows are at fault.
        bytes_per_number: Of its dtype.
    """

    name: str
    side: int
    bytes_per_number: int


def find_misfit(model: nn.Module) -> Misfit | None:
    """Find fused experts that are run by the grouped product, which does not take their sides.

    Args:
        model: A base model.

    Returns:
        The first; ``None`` where there is none.
    """
    for name, module in fused_experts(model).items():
        if getattr(getattr(module, "config", None), "_experts_implementation", None) != GROUPED:
            continue
        parameter = getattr(module, leaf_of(name))
        size = parameter.element_size()
        for side in parameter.shape[1:]:
            if side * size % ROW_BYTES:
                return Misfit(name, side, size)
    return None


def take_loop_if_needed(model: Any) -> None:
    """Have experts that the grouped product does not take run by their class's own loop.

    Args:
        model: A model that nobody else holds; its config says how it is run from now on.
    """
    if find_misfit(model) is not None:
        model.set_experts_implementation(LOOP)


def way_out_of(misfit: Misfit) -> tuple[str, str]:
    """Say why experts do not run, and what to do.

    Args:
        misfit: The experts.

    Returns:
        The cause, and the next step.
    """
    name, side, size = misfit
    cause = (
        f"its experts {name!r} have a side of {side}, which is {side * size} bytes, and their "
        f"implementation {GROUPED!r} takes multiples of {ROW_BYTES} bytes only"
    )
    next_step = (
        f"call model.set_experts_implementation({LOOP!r}), which takes any side, or load it with "
        f"experts_implementation={LOOP!r}"
    )
    return cause, next_step
