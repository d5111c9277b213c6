"""What the heads of a checkpoint's files tell of a model: its size, its targets, its budgets."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from fimlora.constraints import RANK_MENUS
from fimlora.memory.need import features, features_at_once
from fimlora.statistics.options import Passes
from fimlora.whole_names import inside_saved
from fimlora_contract.estimates import BudgetInterval
from fimlora_contract.methods import BY_LAYERS
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.resolve.default_targets import entries_of
from fimlora_service.resolve.endings import Endings
from fimlora_service.resolve.model_files import Shapes
from fimlora_service.resolve.target_checks import has_experts, is_inner, match_entries

BLOCK = re.compile(r"(.*?\.\d+)\.")
OUTSIDE = ""
Matrix = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Sums over the tensors of a checkpoint.

    Attributes:
        parameters: All of them.
        features: Numbers that go into all linear maps and come out of them, per token.
        forward_features: Those that are there at once on the way forward.
        n_blocks: How many repeated blocks there are.
        largest_block: Parameters of the largest one.
        block_features: Features of the one that has most.
        largest_other: Parameters of the largest tensor outside of blocks, mostly an embedding.
    """

    parameters: int
    features: int
    forward_features: int
    n_blocks: int
    largest_block: int
    block_features: int
    largest_other: int


def measure_checkpoint(shapes: Shapes, *, experts_per_token: int = 1) -> Checkpoint:
    """Sum up the tensors of a checkpoint; those with a number in their name form blocks.

    Args:
        shapes: Shape of each tensor by name.
        experts_per_token: How many of a mixture's experts a token goes through.
    """
    parameters, n_features = Counter[str](), Counter[str]()
    others, by_map = [0], list[int]()
    for name, shape in shapes.items():
        key = block_of(name)
        parameters[key] += math.prod(shape)
        by_map.append(features(name, shape, experts_per_token))
        n_features[key] += by_map[-1]
        if key == OUTSIDE:
            others.append(math.prod(shape))
    blocks = parameters.keys() - {OUTSIDE}
    return Checkpoint(
        parameters=parameters.total(),
        features=n_features.total(),
        forward_features=features_at_once(by_map, Passes.FORWARD),
        n_blocks=len(blocks),
        largest_block=max((parameters[key] for key in blocks), default=0),
        block_features=max((n_features[key] for key in blocks), default=0),
        largest_other=max(others),
    )


def block_of(name: str) -> str:
    """The repeated block that a tensor or a module is in, by its name."""
    block = BLOCK.match(name)
    return block[1] if block else OUTSIDE


def find_target_shapes(
    request: CalibrationRequest, *, shapes: Shapes, config: Mapping[str, Any]
) -> dict[str, Matrix] | None:
    """Shapes of the target modules by name; ``None`` where only the loaded model can tell.

    That is so for the default of most architectures, an expression, fused experts,
    and a head that is not part of the checkpoint.
    """
    targets, excluded = (
        entries_of(request, shapes=shapes, config=config),
        request.exclude_modules,
    )
    if targets is None or has_experts(config):
        return None
    if isinstance(excluded, str) or (isinstance(targets, str) and targets != "all-linear"):
        return None
    matrices = find_matrices(shapes)
    if targets == "all-linear":
        names: Sequence[str] | None = [name for name in matrices if is_inner(name)]
    else:
        names = match_entries(targets, matrices, config=config)
    names = names or ()
    left_out = Endings(names).meant_by(excluded or ())
    left_out |= inside_saved(names, _held(names).meant_by(request.modules_to_save or ()))
    found = {name: matrices[name] for name in names if name not in left_out}
    return found or None


def _held(names: Sequence[str]) -> Endings:
    """Some modules, and all that they are inside of."""
    parts = (name.split(".") for name in names)
    return Endings({".".join(some[: i + 1]) for some in parts for i in range(len(some))})


def find_matrices(shapes: Shapes) -> dict[str, Matrix]:
    """All matrices of a checkpoint by the name of their module."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes.items()
        if len(shape) == 2
    }


def budget_interval(
    request: CalibrationRequest, targets: Mapping[str, Matrix], *, parameters: int
) -> BudgetInterval | None:
    """What the budget may be with these targets, in the unit of the request.

    ``None`` with ties or rules per type, which only the allocation itself can weigh.
    """
    allocation, budget = request.allocation, request.budget
    if allocation.groups or allocation.per_type:
        return None
    asked = allocation.rank_menu
    menu = RANK_MENUS[asked] if isinstance(asked, str) else tuple(asked)
    floor = 1 if allocation.r_min is None else allocation.r_min
    are_there, by_layers = True, allocation.method in BY_LAYERS
    caps = [cap for cap in (allocation.r_max, allocation.max_lora_rank) if cap is not None]
    lows, highs = Counter[str](), Counter[str]()  # by block
    for name, sides in targets.items():
        ceiling = min(*caps, *sides)
        lowest_rank, highest_rank = _allowed(
            min(floor, ceiling), ceiling, menu=menu, multiple_of=allocation.multiple_of
        )
        are_there &= by_layers or lowest_rank <= highest_rank
        cost, block = 1 if budget.unit == "rank" else sum(sides), block_of(name)
        lows[block] += lowest_rank * cost
        highs[block] += highest_rank * cost
    low, high = lows.total(), highs.total()
    if by_layers:  # whichever are chosen
        least, most = (
            sorted(n for b, n in some.items() if b != OUTSIDE) for some in (lows, highs)
        )
        n = min(allocation.n_layers or max(1, len(least) // 2), len(least))
        low, high = sum(least[:n]), sum(most[len(most) - n :])
    divisor = {"rank": len(targets), "fraction": parameters}.get(budget.unit, 1)
    if not divisor:
        return None
    factor = Fraction(budget.bytes_per_parameter if budget.unit == "bytes" else 1, divisor)
    lowest, highest = float(low * factor), float(high * factor)
    return BudgetInterval(
        unit=budget.unit,
        lowest=lowest,
        highest=highest,
        # A parameter budget above the highest ranks is met by them; a mean rank is not.
        is_feasible=are_there
        and lowest <= budget.value
        and (budget.unit != "rank" or budget.value <= highest),
    )


def _allowed(
    floor: int, ceiling: int, *, menu: Sequence[int], multiple_of: int
) -> tuple[int, int]:
    """The lowest and the highest allowed rank within bounds; the lowest is above where none is."""
    if menu:
        lowest = min((rank for rank in (0, *menu) if rank >= floor), default=menu[-1] + 1)
        return lowest, max((rank for rank in menu if rank <= ceiling), default=0)
    return -(-floor // multiple_of) * multiple_of, ceiling // multiple_of * multiple_of
