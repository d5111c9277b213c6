"""What the heads of a checkpoint's files tell of a model: its size, its targets, its budgets."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fimlora_contract.estimates import BudgetInterval
from fimlora_contract.requests import CalibrationRequest, TargetModules
from fimlora_service.base_models import Shapes
from fimlora_service.targets import HEADS, has_experts, match_entries

BLOCK = re.compile(r"(.*?\.\d+)\.")
EMBEDDINGS = re.compile(r"(^|\.|_)(embeddings?|embed_\w+|wte|wpe)(\.|$)")
Matrix = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Sizes in parameters.

    Attributes:
        parameters: All of them.
        largest_block: Those of the largest repeated block.
        largest_other: Those of the largest tensor outside of blocks, mostly an embedding.
        n_blocks: How many blocks there are.
    """

    parameters: int
    largest_block: int
    largest_other: int
    n_blocks: int


def measure_checkpoint(shapes: Shapes) -> Checkpoint:
    """Sum up the tensors of a checkpoint; those with a number in their name form blocks."""
    blocks: dict[str, int] = {}
    others = [0]
    for name, shape in shapes.items():
        block = BLOCK.match(name)
        if block:
            blocks[block[1]] = blocks.get(block[1], 0) + math.prod(shape)
        else:
            others.append(math.prod(shape))
    return Checkpoint(
        parameters=sum(blocks.values()) + sum(others),
        largest_block=max(blocks.values(), default=0),
        largest_other=max(others),
        n_blocks=len(blocks),
    )


def find_target_shapes(
    targets: TargetModules, *, shapes: Shapes, config: Mapping[str, Any]
) -> list[Matrix] | None:
    """Shapes of the target modules; ``None`` where only the loaded model can tell.

    That is so for the default of an architecture, packed weights, fused experts, and a head
    that is not part of the checkpoint.
    """
    if targets is None or has_experts(config) or config.get("quantization_config"):
        return None
    matrices = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes.items()
        if len(shape) == 2
    }
    if targets == "all-linear":
        names: Sequence[str] | None = [name for name in matrices if is_inner(name)]
    else:
        names = match_entries(targets, matrices)
    return [matrices[name] for name in names] if names else None


def is_inner(name: str) -> bool:
    """Whether a matrix is neither an embedding nor an output head, by its name."""
    return name.rpartition(".")[2] not in HEADS and not EMBEDDINGS.search(name)


def budget_interval(
    request: CalibrationRequest, matrices: Sequence[Matrix], *, parameters: int
) -> BudgetInterval | None:
    """What the budget may be with these targets, in the unit of the request."""
    allocation, budget = request.allocation, request.budget
    floor = 1 if allocation.r_min is None else allocation.r_min
    floor = max(floor, allocation.multiple_of) if floor else 0
    ceilings = [min(allocation.r_max or min(sides), *sides) for sides in matrices]
    low = high = 0
    for sides, ceiling in zip(matrices, ceilings, strict=True):
        cost = 1 if budget.unit == "rank" else sum(sides)
        low, high = low + min(floor, ceiling) * cost, high + ceiling * cost
    divisor = {"rank": len(matrices), "fraction": parameters}.get(budget.unit, 1)
    if not divisor:
        return None
    factor = Fraction(budget.bytes_per_parameter if budget.unit == "bytes" else 1, divisor)
    lowest, highest = float(low * factor), float(high * factor)
    return BudgetInterval(
        unit=budget.unit,
        lowest=lowest,
        highest=highest,
        # A parameter budget above the highest ranks is met by them; a mean rank is not.
        is_feasible=lowest <= budget.value
        and (budget.unit != "rank" or budget.value <= highest),
    )
