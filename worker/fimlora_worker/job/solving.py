"""Solve for a plan under the budget and the bounds of a request."""

from collections.abc import Mapping
from typing import Any

from fimlora import RankPlan, Scores, Settings, allocate
from fimlora.memory.need import N_VALUES
from fimlora.plan import Budget
from fimlora_contract.requests import CalibrationRequest


def solve(
    request: CalibrationRequest, scores: Scores, *, provenance: Mapping[str, Any] | None = None
) -> RankPlan:
    """The plan for some scores."""
    options = request.allocation.model_dump(exclude={"aggregation"})
    return allocate(
        scores,
        budget_of(request),
        scale=request.adapter.scale,
        provenance=provenance,
        **options,
    )


def budget_of(request: CalibrationRequest) -> Budget:
    """The budget of a request, as the engine takes it."""
    budget = request.budget
    return Budget(budget.unit, budget.value, budget.bytes_per_parameter)


def check_feasible(request: CalibrationRequest, model: Any, settings: Settings) -> None:
    """Solve with equal scores first: an infeasible budget costs no calibration."""
    modules = settings.choose(model).modules
    scores = Scores(
        modules,
        {m.name: 1.0 for m in modules},
        spectra={m.name: [1.0] * min(m.d_in, m.d_out, N_VALUES) for m in modules},
        base_parameters=sum(p.numel() for p in model.parameters()),
    )
    solve(request, scores)
