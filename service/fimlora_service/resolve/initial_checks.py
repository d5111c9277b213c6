"""Initial weights that could not fill the ranks asked for, as far as the request tells."""

import math
from collections.abc import Sequence

from fimlora.adapter.initial.checks import check_ceiling
from fimlora.adapter.initial.registry import find_initial
from fimlora.constraints import Constraints
from fimlora.errors import InvalidOption
from fimlora.plan import TargetModule
from fimlora_contract.methods import BY_SPECTRA
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.errors import ValidationFailed
from fimlora_service.resolve.model_files import Shapes


def check_initial(request: CalibrationRequest, matrices: Shapes) -> None:
    """Refuse initial weights that go no higher than the ceiling of a plan.

    What the request alone does not tell, the worker knows before it measures: the ceiling where
    none is given and the budget is none in ranks, or the method goes by recorded spectra, and the
    modules of types whose names loading may change.

    Args:
        request: The request.
        matrices: Shapes of the modules that are its targets for certain, by name.

    Raises:
        ValidationFailed: A target could get a higher rank than they fill.
    """
    name = request.adapter.initial
    if find_initial(name).most_rank is None:
        return
    modules = [TargetModule(name, d_in, d_out) for name, (d_out, d_in) in matrices.items()]
    ceilings = _ceilings(request, modules)
    try:
        check_ceiling(name, [m for m in modules if m.name in ceilings], ceilings)
    except InvalidOption as error:
        raise ValidationFailed(str(error)) from error


def _ceilings(request: CalibrationRequest, modules: Sequence[TargetModule]) -> dict[str, int]:
    """The highest rank that each module could have, where the request tells."""
    # Here and not above, as the service starts without numpy.
    from fimlora.allocation.types import highest_ranks

    asked = request.allocation
    constraints = Constraints.of(
        multiple_of=asked.multiple_of,
        rank_menu=asked.rank_menu,
        per_type={entry: rule.model_dump() for entry, rule in asked.per_type.items()},
        max_lora_rank=asked.max_lora_rank,
    )
    ceiling = _ceiling(request, constraints.rank_menu)
    try:
        return {} if ceiling is None else highest_ranks(constraints, modules, ceiling)
    except InvalidOption:  # the names of modules may be others once the model is loaded
        return {}


def _ceiling(request: CalibrationRequest, menu: Sequence[int]) -> int | None:
    """The highest rank of a module without a rule of its own, as the allocation sets it."""
    allocation, mean = request.allocation, request.budget.rank
    if allocation.r_max is not None:
        return allocation.r_max
    if mean is None or allocation.method in BY_SPECTRA:
        return None
    ceiling = max(math.ceil(2 * mean), allocation.r_min or 0)
    return min((rank for rank in menu if rank >= ceiling), default=ceiling)
