"""Solve for a plan under the budget and the bounds of a request."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from fimlora import RankPlan, Scores, TargetModule, allocate
from fimlora.adapter.initial.checks import check_ceiling
from fimlora.allocation.limits import budget_limit
from fimlora.allocation.types import highest_ranks
from fimlora.errors import FimloraError, InfeasibleBudget, InvalidOption
from fimlora.memory.need import N_VALUES
from fimlora.methods.expert_choice import ExpertChoice, check_selectable, least_and_most
from fimlora.methods.fim import check_of_experts
from fimlora.methods.registry import find_method, passes_needed
from fimlora.model.targets import count_base_parameters
from fimlora.plan import Budget
from fimlora.statistics.options import Passes
from fimlora_contract.comparison_requests import ComparisonRequest
from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.requests import CalibrationRequest
from fimlora_worker.evaluation.settings import UNIFORM

# A part of a block by its number, or an expert that is a module of its own, by number or name.
OF_ONE_EXPERT = re.compile(r"\b\d+\b|\bexperts\.\w+\.")


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
    request: CalibrationRequest,
    model: Any,
    modules: Sequence[TargetModule],
    not_targeted: Mapping[str, str] | None = None,
) -> None:
    """Solve with equal scores first: an infeasible budget costs no calibration.

    Which modules the rows reach shows while they are measured: text leaves a whole stack of
    blocks of a model of several parts alone. So a budget is refused for certain where it is
    infeasible for all modules and for those of each stack. How many experts cover a share of
    the tokens shows then, too: it is refused where it is so for one in each layer and for all.

    Args:
        request: The request.
        model: Its base model, without weights.
        modules: The target modules.
        not_targeted: What was meant to be one and is not, with the reason: constraints may name it.

    Raises:
        InfeasibleBudget: It is infeasible for whatever is reached.
        InvalidOption: The initial weights do not go up to the highest rank, or experts cannot
            be selected as is asked for.
    """
    choice = experts_of(request)
    has_fisher = passes_needed(*request.methods_measured) is Passes.BACKWARD
    check_selectable(modules, choice, has_fisher=has_fisher)
    check_selection_is_written(request, modules)
    if has_fisher:
        check_of_experts(modules, request.allocation.aggregation)
    n_parameters = count_base_parameters(model)
    refused: dict[bool, FimloraError] = {}
    for some, left_out in least_and_most(modules, choice):
        try:
            left = {**(not_targeted or {}), **left_out}
            _check_some(request, _Targets(some, modules, left, n_parameters))
            return
        except (InfeasibleBudget, InvalidOption) as error:
            refused[_is_too_low(error, budget_of(request), some, n_parameters)] = error
    if len(refused) == 1:  # else it may be met by a number of experts in between
        raise next(iter(refused.values()))


def _is_too_low(
    error: FimloraError, budget: Budget, modules: Sequence[TargetModule], n_parameters: int
) -> bool:
    """Whether a budget was refused as it is below what it must be, not above."""
    interval = error.interval if isinstance(error, InfeasibleBudget) else None
    limit = budget_limit(budget, modules, base_parameters=n_parameters)
    return interval is not None and limit < interval[0]


def check_selection_is_written(
    request: CalibrationRequest, modules: Sequence[TargetModule]
) -> None:
    """Refuse to select fused experts where no weights are written, which alone would say so.

    Raises:
        InvalidOption: An adapter without weights is asked for.
    """
    if request.allocation.experts is None or not request.writes_adapter:
        return
    fused = next((module.name for module in modules if module.n_experts is not None), None)
    if fused is not None and not request.adapter.weights:
        raise InvalidOption(
            f"allocation.experts with adapter.weights=false: initial weights alone say which "
            f"experts of {fused!r} train, and from adapter_config.json all would; give "
            "adapter.weights=true"
        )


@dataclass(frozen=True, slots=True)
class _Targets:
    """Modules that may come to be targets.

    Attributes:
        modules: Those that train.
        every: Those of experts that are not selected besides.
        not_targeted: What else was meant to be a target, with the reason.
        n_parameters: Of the base model.
    """

    modules: Sequence[TargetModule]
    every: Sequence[TargetModule]
    not_targeted: Mapping[str, str]
    n_parameters: int

    def of_stacks(self) -> "list[_Targets]":
        """Those of each stack alone; both have the same ones, as experts of their own are in none."""
        both = zip(_stacks(self.modules), _stacks(self.every), strict=True)
        return [replace(self, modules=some, every=every) for some, every in both]

    def scores(self, modules: Sequence[TargetModule]) -> Scores:
        """Equal ones."""
        return Scores(
            modules,
            {m.name: 1.0 for m in modules},
            spectra={m.name: [1.0] * min(m.d_in, m.d_out, N_VALUES) for m in modules},
            base_parameters=self.n_parameters,
            not_targeted=self.not_targeted,
        )


def _check_some(request: CalibrationRequest, targets: _Targets) -> None:
    """See that a budget is feasible for some modules, or for those of one of their stacks."""
    try:
        _solve_evenly(request, targets)
    except InfeasibleBudget:
        for stack in targets.of_stacks():
            with suppress(InfeasibleBudget):
                _solve_evenly(request, stack)
                return
        raise


def _solve_evenly(request: CalibrationRequest, targets: _Targets) -> None:
    scores = targets.scores(targets.modules)
    budget = budget_of(request)
    if isinstance(request, EvaluationRequest):  # whose arms spend what uniform ranks spend
        uniform = _solve(request, replace(scores, rule=UNIFORM), budget)
        budget = Budget("parameters", uniform.spent.parameters)
        if request.allocation.experts is not None:
            _solve_for_all(request, targets, budget)
    for rule in _rules(request):
        plan = _solve(request, replace(scores, rule=rule), budget)
        ceilings = highest_ranks(plan.constraints, plan.modules, plan.r_max, plan.not_targeted)
        check_ceiling(request.adapter.initial, targets.modules, ceilings)


def _solve_for_all(request: CalibrationRequest, targets: _Targets, budget: Budget) -> None:
    """See that uniform ranks of all experts can spend what the selected ones do.

    Raises:
        InfeasibleBudget: Even their lowest ranks cost more.
    """
    try:
        _solve(request, replace(targets.scores(targets.every), rule=UNIFORM), budget)
    except InfeasibleBudget as error:
        raise all_experts_cost_more(error) from error


def all_experts_cost_more(error: InfeasibleBudget) -> InfeasibleBudget:
    """Say of a budget for selected experts that the arm of all experts cannot keep to it."""
    return InfeasibleBudget(
        f"uniform ranks of all experts, which are trained beside the selected ones, cannot spend as "
        f"little as these: {error}; give a larger budget, or select more experts",
        interval=error.interval,
    )


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
        if module.layer is not None and not OF_ONE_EXPERT.search(module.kind):
            stacks[module.name.partition(f".{module.layer}.")[0]].append(module)
    return list(stacks.values())
