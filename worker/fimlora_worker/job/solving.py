"""Solve for a plan under the budget and the bounds of a request."""

from collections.abc import Mapping
from typing import Any

from fimlora import RankPlan, Scores, allocate, find_targets
from fimlora.memory.need import N_VALUES
from fimlora.plan import Budget
from fimlora_contract.requests import CalibrationRequest


def solve(
    request: CalibrationRequest, scores: Scores, *, provenance: Mapping[str, Any] | None = None
) -> RankPlan:
    """The plan for some scores."""
    allocation, budget = request.allocation, request.budget
    return allocate(
        scores,
        Budget(budget.unit, budget.value, budget.bytes_per_parameter),
        rule=allocation.rule,
        r_min=allocation.r_min,
        r_max=allocation.r_max,
        multiple_of=allocation.multiple_of,
        seed=allocation.seed,
        scale=request.adapter.scale,
        provenance=provenance,
    )


def check_feasible(request: CalibrationRequest, model: Any) -> None:
    """Solve with equal scores first: an infeasible budget costs no calibration."""
    modules = find_targets(model, request.target_modules)
    scores = Scores(
        modules,
        {m.name: 1.0 for m in modules},
        spectra={m.name: [1.0] * min(m.d_in, m.d_out, N_VALUES) for m in modules},
        base_parameters=sum(p.numel() for p in model.parameters()),
    )
    solve(request, scores)
