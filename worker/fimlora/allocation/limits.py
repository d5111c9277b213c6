"""A budget in the unit the solver works in, and back for what people read.

Nothing here imports torch.
"""

import decimal
import math
from collections.abc import Sequence
from fractions import Fraction

from fimlora.errors import InfeasibleBudget, InvalidOption
from fimlora.plan import Budget, TargetModule


def budget_limit(
    budget: Budget, modules: Sequence[TargetModule], *, base_parameters: int | None = None
) -> int:
    """The budget in the unit the solver works in.

    Args:
        budget: What may be spent.
        modules: The target modules.
        base_parameters: Size of the base model, only read for ``fraction``.

    Returns:
        Ranks in total for a ``rank`` budget, trainable parameters for all others.

    Raises:
        InvalidOption: A ``fraction`` budget without the size of the base model.
    """
    # As written: 0.29 of 100 parameters is 29, though the product of floats is below it.
    value = Fraction(repr(budget.value))
    match budget.unit:
        case "rank":
            return math.floor(value * len(modules))
        case "parameters":
            return math.floor(value)
        case "bytes":
            return math.floor(value) // budget.bytes_per_parameter
        case "fraction":
            if base_parameters is None:
                raise InvalidOption(
                    f"budget fraction={budget.value:g} needs base_parameters, the number of "
                    "parameters of the base model"
                )
            return math.floor(value * base_parameters)


def explain(
    error: InfeasibleBudget,
    budget: Budget,
    *,
    n_modules: int,
    base_parameters: int | None,
    bounds: tuple[int, int],
    given: tuple[int | None, int | None],
    reachable: tuple[int, int] | None = None,
) -> str:
    """Say of an infeasible budget what was asked for, and what can be.

    Args:
        error: What the solver says, in its own unit.
        budget: The budget as requested.
        n_modules: Number of target modules.
        base_parameters: Size of the base model, only read for ``fraction``.
        bounds: Lowest and highest rank.
        given: The same as requested; ``None`` where it is a default.
        reachable: The least and the most that can be spent with the bounds that were given alone,
            in the unit of the solver: defaults follow from the budget, and those of a budget
            that is refused say nothing of another. ``None`` where both were given, or it is
            not known.

    Returns:
        A message that names both bounds and has the interval in the unit of the request.
    """
    if reachable is not None:
        return _explain_reachable(
            budget, n_modules, base_parameters, given=given, reachable=reachable
        )
    default = ["default " if value is None else "" for value in given]
    said = (
        f"budget {budget.unit}={budget.value:g} with {default[0]}r_min={bounds[0]}, "
        f"{default[1]}r_max={bounds[1]}: {error}"
    )
    if error.interval is not None:
        low, high = _in_unit(error.interval, budget, n_modules, base_parameters)
        said += f"; as a budget: {budget.unit} from {low} to {high}"
    return said


def _explain_reachable(
    budget: Budget,
    n_modules: int,
    base_parameters: int | None,
    *,
    given: tuple[int | None, int | None],
    reachable: tuple[int, int],
) -> str:
    """Say the same of a budget some of whose bounds are defaults, which would follow another one."""
    named = [
        f"{name}={value}"
        for name, value in zip(("r_min", "r_max"), given, strict=True)
        if value is not None
    ]
    bounds = f" with {', '.join(named)}" if named else ""
    what = "ranks" if budget.unit == "rank" else "parameters"
    low, high = _in_unit(reachable, budget, n_modules, base_parameters)
    return (
        f"budget {budget.unit}={budget.value:g}{bounds} is outside the feasible interval "
        f"[{reachable[0]}, {reachable[1]}] of {what}, from the lowest to the highest ranks that "
        f"{n_modules} modules can have; as a budget: {budget.unit} from {low} to {high}"
    )


def _in_unit(
    interval: tuple[int, int], budget: Budget, n_modules: int, base_parameters: int | None
) -> tuple[str, str]:
    """The ends of an interval in the unit of the request, rounded inwards."""
    match budget.unit:
        case "rank":
            divisor = n_modules
        case "fraction":
            divisor = base_parameters or 1
        case _:
            factor = budget.bytes_per_parameter if budget.unit == "bytes" else 1
            return str(interval[0] * factor), str(interval[1] * factor)
    low, high = (
        decimal.Context(prec=6, rounding=rounding).divide(end, divisor)
        for end, rounding in zip(
            map(decimal.Decimal, interval),
            (decimal.ROUND_CEILING, decimal.ROUND_FLOOR),
            strict=True,
        )
    )
    return f"{low.normalize():f}", f"{high.normalize():f}"
