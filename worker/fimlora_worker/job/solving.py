"""Solve for a plan under the budget and the bounds of a request."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fimlora import RankPlan, Scores, TargetModule, allocate
from fimlora.adapter.initial.checks import check_ceiling
from fimlora.allocation.types import resolve_types
from fimlora.errors import InfeasibleBudget
from fimlora.memory.need import N_VALUES
from fimlora.methods.registry import find_method
from fimlora.model.targets import count_base_parameters
from fimlora.plan import Budget
from fimlora_contract.requests import CalibrationRequest


def solve(
    request: CalibrationRequest, scores: Scores, *, provenance: Mapping[str, Any] | None = None
) -> RankPlan:
    """The plan for some scores."""
    options = request.allocation.model_dump(exclude={"aggregation", "method"})
    return allocate(
        scores,
        budget_of(request),
        **request.adapter.scaling,
        provenance=provenance,
        **options,
    )


def budget_of(request: CalibrationRequest) -> Budget:
    """The budget of a request, as the engine takes it."""
    budget = request.budget
    return Budget(budget.unit, budget.value, budget.bytes_per_parameter)


def check_feasible(
    request: CalibrationRequest, model: Any, modules: Sequence[TargetModule]
) -> None:
    """Solve with equal scores first: an infeasible budget costs no calibration.

    Which modules the rows reach shows while they are measured: text leaves a whole stack of
    blocks of a model of several parts alone. So a budget is refused for certain where it is
    infeasible for all modules and for those of each stack.

    Raises:
        InfeasibleBudget: It is infeasible for whatever is reached.
        InvalidOption: The initial weights do not go up to the highest rank.
    """
    n_parameters = count_base_parameters(model)
    try:
        _solve_evenly(request, modules, n_parameters)
    except InfeasibleBudget:
        for stack in _stacks(modules):
            with suppress(InfeasibleBudget):
                _solve_evenly(request, stack, n_parameters)
                return
        raise


def _solve_evenly(
    request: CalibrationRequest, modules: Sequence[TargetModule], n_parameters: int
) -> None:
    scores = Scores(
        modules,
        {m.name: 1.0 for m in modules},
        spectra={m.name: [1.0] * min(m.d_in, m.d_out, N_VALUES) for m in modules},
        base_parameters=n_parameters,
        rule=find_method(request.allocation.method).rule,
    )
    plan = solve(request, scores)
    check_ceiling(request.adapter.initial, modules, _ceilings(plan))


def _ceilings(plan: RankPlan) -> dict[str, int]:
    """The highest rank that each module could get, by its name."""
    found = {module.name: plan.r_max for module in plan.modules}
    for entry, names in resolve_types(plan.constraints, plan.modules).items():
        if (of_type := plan.constraints.per_type[entry].r_max) is not None:
            found |= dict.fromkeys(names, of_type)
    return found


def _stacks(modules: Sequence[TargetModule]) -> list[list[TargetModule]]:
    """The modules of each stack of blocks, without experts, of which some may see no token."""
    stacks: dict[str, list[TargetModule]] = defaultdict(list)
    for module in modules:
        if module.layer is not None and not re.search(r"\b\d+\b", module.kind):
            stacks[module.name.partition(f".{module.layer}.")[0]].append(module)
    return list(stacks.values())
