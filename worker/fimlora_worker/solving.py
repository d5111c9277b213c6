"""Solve for a plan under the budget and the bounds of a request."""

from typing import Any

from fimlora import RankPlan, allocate, find_targets
from fimlora.plan import Budget
from fimlora.spectrum_sizes import N_VALUES
from fimlora_contract.requests import CalibrationRequest


def solve(request: CalibrationRequest, scores: Any, **options: Any) -> RankPlan:
    """The plan for some scores or statistics."""
    allocation, budget = request.allocation, request.budget
    return allocate(
        scores,
        budget=Budget(budget.unit, budget.value, budget.bytes_per_parameter),
        rule=allocation.rule,
        r_min=allocation.r_min,
        r_max=allocation.r_max,
        multiple_of=allocation.multiple_of,
        seed=allocation.seed,
        scale=request.adapter.scale,
        **options,
    )


def check_budget(request: CalibrationRequest, model: Any) -> None:
    """Solve with equal scores first: an infeasible budget costs no calibration."""
    modules = find_targets(model, request.target_modules)
    n_parameters = sum(p.numel() for p in model.parameters())
    scores: dict[str, Any] = {m.name: 1.0 for m in modules}
    if request.allocation.rule == "spectral":
        scores = {m.name: [1.0] * min(m.d_in, m.d_out, N_VALUES) for m in modules}
    solve(request, scores, modules=modules, base_parameters=n_parameters)
