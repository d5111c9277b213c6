"""Check named target modules and their budget against the weights a checkpoint lists.

Only what is certain is refused. A head may be missing from a checkpoint because training
adds it, and transformers fuses the experts of a mixture when it loads them: what such a
model's modules are called is only known to the worker.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from fimlora_contract.requests import Budget, CalibrationRequest
from fimlora_service.base_models import Shapes
from fimlora_service.errors import BudgetInfeasible, ValidationFailed

HEADS = frozenset({"lm_head", "score", "classifier", "embed_out"})
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
N_NEAR = 5


def check_targets(
    request: CalibrationRequest, *, shapes: Shapes | None, config: Mapping[str, Any]
) -> None:
    """Refuse target modules that the checkpoint cannot have, and budgets they exceed.

    Raises:
        ValidationFailed: An entry matches no weight; the message lists near names.
        BudgetInfeasible: Even the lowest ranks cost more than the budget.
    """
    entries = request.target_modules
    if not isinstance(entries, list) or shapes is None or has_experts(config):
        return
    costs = {
        name.removesuffix(".weight"): sum(shape)
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }
    matched: set[str] = set()
    for index, entry in enumerate(entries):
        found = {name for name in costs if is_match(entry, name)}
        if not found and entry.rpartition(".")[2] not in HEADS:
            raise _unknown(entry, index, costs)
        matched |= found
    lowest = 1 if request.allocation.r_min is None else request.allocation.r_min
    floor = lowest * sum(costs[name] for name in matched)
    check_budget(request.budget, floor=floor, n_modules=len(matched))


def is_match(entry: str, name: str) -> bool:
    """Whether an entry means a weight: its name, its end, or its name under a base prefix."""
    return name == entry or name.endswith(f".{entry}") or entry.endswith(f".{name}")


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether the model is a mixture of experts."""
    return any(config.get(key) for key in EXPERT_COUNTS)


def check_budget(budget: Budget, *, floor: int, n_modules: int) -> None:
    """Refuse a budget in parameters or bytes below what the lowest ranks cost."""
    limits = {
        "parameters": budget.parameters,
        "bytes": budget.bytes and budget.bytes // budget.bytes_per_parameter,
    }
    limit = limits.get(budget.unit)
    if limit is not None and limit < floor:
        raise BudgetInfeasible(
            f"budget {budget.unit}={budget.value:.0f} allows {limit} parameters; the lowest "
            f"ranks of {n_modules} modules need {floor}: the feasible interval starts there"
        )


def _unknown(entry: str, index: int, names: Iterable[str]) -> ValidationFailed:
    leaves = sorted({name.rpartition(".")[2] for name in names})
    near = get_close_matches(entry, [*leaves, *names], n=N_NEAR, cutoff=0.5)
    hint = f"near names: {near}" if near else f"its modules end in {leaves[:20]}"
    message = f"the model has no linear map {entry!r}; {hint}"
    field = {"field": f"body.target_modules[{index}]", "message": message}
    return ValidationFailed(message, errors=[field | {"type": "unknown_target"}])
