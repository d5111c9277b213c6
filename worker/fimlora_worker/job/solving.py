"""Solve for a plan under the budget and the bounds of a request."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fimlora import RankPlan, Scores, TargetModule, allocate
from fimlora.adapter.initial.checks import check_ceiling
from fimlora.allocation.types import highest_ranks
from fimlora.errors import InfeasibleBudget
from fimlora.memory.need import N_VALUES
from fimlora.methods.expert_choice import ExpertChoice, at_least
from fimlora.methods.registry import find_method
from fimlora.model.targets import count_base_parameters
from fimlora.plan import Budget
from fimlora_contract.comparison_requests import ComparisonRequest
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.requests import CalibrationRequest
from fimlora_worker.evaluation.settings import UNIFORM


def solve(
    request: CalibrationRequest, scores: Scores, *, provenance: Mapping[str, Any] | None = None
) -> RankPlan:
    """The plan for some scores."""
    return _solve(request, scores, budget_of(request), provenance=provenance)


def _solve(
    request: CalibrationRequest,
    scores: Scores,
    budget: Budget,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> RankPlan:
    options = request.allocation.model_dump(exclude={"aggregation", "method", "experts"})
    if scores.rule != "layers":  # a request of several methods may have one that chooses layers
        options["n_layers"] = None
    return allocate(
        scores,
        budget,
        **request.adapter.scaling,
        provenance=provenance,
        **options,
    )


def experts_of(request: CalibrationRequest) -> ExpertChoice | None:
    """Which experts of a mixture train; ``None`` where all do."""
    allocation = request.allocation
    asked = allocation.experts
    return ExpertChoice.of(None if asked is None else asked.model_dump(), seed=allocation.seed)


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
    choice = experts_of(request)
    if choice is not None and choice.coverage is not None:
        return  # how many experts train, and cost, shows while they are measured
    modules = at_least(modules, choice)
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
    )
    budget = budget_of(request)
    if isinstance(request, EvaluationRequest):  # whose arms spend what uniform ranks spend
        uniform = _solve(request, replace(scores, rule=UNIFORM), budget)
        budget = Budget("parameters", uniform.spent.parameters)
    for rule in _rules(request):
        plan = _solve(request, replace(scores, rule=rule), budget)
        ceilings = highest_ranks(plan.constraints, plan.modules, plan.r_max)
        check_ceiling(request.adapter.initial, modules, ceilings)


def _rules(request: CalibrationRequest) -> tuple[str, ...]:
    """The rules of the methods that must have a plan.

    A method by layers that nobody named is left out of a comparison where it has none.
    """
    rules = dict.fromkeys(find_method(name).rule for name in request.methods_measured)
    is_free = isinstance(request, ComparisonRequest) and request.methods is None
    return tuple(rule for rule in rules if not (is_free and rule == "layers"))


def _stacks(modules: Sequence[TargetModule]) -> list[list[TargetModule]]:
    """The modules of each stack of blocks, without experts, of which some may see no token."""
    stacks: dict[str, list[TargetModule]] = defaultdict(list)
    for module in modules:
        if module.layer is not None and not re.search(r"\b\d+\b", module.kind):
            stacks[module.name.partition(f".{module.layer}.")[0]].append(module)
    return list(stacks.values())
