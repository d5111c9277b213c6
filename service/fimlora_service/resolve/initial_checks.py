"""Initial weights that could not fill the ranks asked for, as far as the request tells."""

from fimlora.adapter.initial.checks import check_ceiling
from fimlora.errors import InvalidOption
from fimlora.plan import TargetModule
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.errors import ValidationFailed
from fimlora_service.resolve.model_files import Shapes


def check_initial(request: CalibrationRequest, matrices: Shapes) -> None:
    """Refuse initial weights that go no higher than the ceiling of a plan.

    Where the budget is none in ranks and no ceiling is given, or types have their own, the worker
    knows it before it measures.

    Args:
        request: The request.
        matrices: Shapes of the modules that are its targets for certain, by name.

    Raises:
        ValidationFailed: A target could get a higher rank than they fill.
    """
    allocation, mean = request.allocation, request.budget.rank
    ceiling = allocation.r_max or (2 * mean if mean else None)
    if ceiling is None or allocation.per_type:
        return
    ceiling = min(ceiling, allocation.max_lora_rank or ceiling)
    modules = [TargetModule(name, d_in, d_out) for name, (d_out, d_in) in matrices.items()]
    try:
        ceilings = dict.fromkeys(matrices, ceiling)
        check_ceiling(request.adapter.initial, modules, ceilings)
    except InvalidOption as error:
        raise ValidationFailed(str(error)) from error
