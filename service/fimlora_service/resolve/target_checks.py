"""Check named target modules and their budget against the weights a checkpoint lists.

Only what is certain is refused. A head may be missing from a checkpoint because training
adds it, and transformers fuses the experts of a mixture when it loads them: what such a
model's modules are called is only known to the worker.
"""

import math
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from fimlora_contract.budgets import Budget
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.errors import BudgetInfeasible, ValidationFailed
from fimlora_service.resolve.default_targets import entries_of
from fimlora_service.resolve.endings import Endings
from fimlora_service.resolve.initial_checks import check_initial
from fimlora_service.resolve.model_files import Shapes

HEADS = frozenset({"lm_head", "score", "classifier", "embed_out"})
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "pooler_hidden_size")
N_NEAR = 5
EMBEDDINGS = re.compile(r"(^|\.|_)(embeddings?|embed_\w+|wte|wpe)(\.|$)")
# Names under which transformers keeps tables, never linear maps, and what counts their rows.
TABLES = frozenset({
    "embed_tokens", "embed_in", "embed_positions", "word_embeddings", "token_embedding",
    "tok_embeddings", "position_embeddings", "position_embedding", "token_type_embeddings",
    "wte", "wpe",
})  # fmt: skip
ROW_COUNTS = ("vocab_size", "max_position_embeddings", "n_positions", "type_vocab_size")


def check_targets(
    request: CalibrationRequest, *, shapes: Shapes, config: Mapping[str, Any]
) -> None:
    """Refuse target modules that the checkpoint cannot have, and budgets out of reach.

    Raises:
        ValidationFailed: An entry matches no weight, and the message lists near names; or the
            initial weights do not go up to its highest rank.
        BudgetInfeasible: Even the lowest ranks cost more than the budget, or the highest
            ranks have a lower mean.
    """
    matrices = {
        name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) == 2
    }
    check_experts(request, config)
    entries = entries_of(request, shapes=shapes, config=config)
    matched = None
    if entries and not isinstance(entries, str) and not has_experts(config):
        matched = match_entries(entries, matrices, config=config)
    if request.exclude_modules is not None or request.modules_to_save is not None:
        matched = None  # what is left of them is for the worker to see
    if not matrices:
        return
    check_initial(request, {name: matrices[name] for name in matched or ()})
    check_ceiling(request, matrices, config, matched)
    check_floor(request, matrices, matched, size=sum(map(math.prod, shapes.values())))


def check_experts(request: CalibrationRequest, config: Mapping[str, Any]) -> None:
    """Refuse experts of a model whose configuration speaks of none.

    Raises:
        ValidationFailed: Fused ones are asked for, or some are to be selected.
    """
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    if any("expert" in key for part in parts for key in part):
        return
    asked = {
        "target_parameters": (request.target_parameters, "asks for fused experts"),
        "allocation.experts": (request.allocation.experts, "selects experts"),
    }
    for field, (value, does) in asked.items():
        if value is not None:
            message = f"{does}, and the model's configuration states no experts; leave it out"
            raise wrong_entry(None, message, "unknown_target", field=field)


def match_entries(
    entries: Iterable[str], matrices: Shapes, *, config: Mapping[str, Any]
) -> list[str] | None:
    """Names of the weights that entries mean; ``None`` if a head is among them.

    A model of several parts may be loaded into a tree whose parts stand elsewhere than in the
    checkpoint: there an entry is known by what follows its last block.

    Raises:
        ValidationFailed: An entry matches no weight; the message lists near names.
    """
    matched: dict[str, None] = {}
    endings, may_differ = Endings(matrices), has_parts(config)
    has_head = False
    for entry, index in first_places(entries).items():
        found = endings.meant(entry)
        if not found and may_differ:
            found = endings.meant(inside_block(entry))
        if not found and entry.rpartition(".")[2] not in HEADS:
            raise unknown_entry(entry, index, matrices)
        has_head |= not found
        matched |= dict.fromkeys(found)
    return None if has_head else list(matched)


def is_table(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool:
    """Whether a weight is an embedding for certain."""
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    counts = [part.get(key) for part in parts for key in ROW_COUNTS]
    return name.rpartition(".")[2] in TABLES and shape[0] in counts


def is_inner(name: str) -> bool:
    """Whether a matrix is neither an embedding nor an output head, by its name."""
    return name.rpartition(".")[2] not in HEADS and not EMBEDDINGS.search(name)


def check_ceiling(
    request: CalibrationRequest,
    matrices: Shapes,
    config: Mapping[str, Any],
    matched: list[str] | None,
) -> None:
    """Refuse a mean rank above the smaller side of every matrix that can be a target.

    Maps that loading joins by their outputs, and heads that it adds, are still no wider on
    one side than the hidden states, so the width that the configuration states counts too.
    """
    widths = [largest_number(config, key) for key in WIDTHS] if matched is None else []
    sides = [min(matrices[name]) for name in (matched or matrices)]
    highest = max(sides + widths)
    mean = request.budget.rank
    if mean is not None and mean > highest:
        lowest = min(request.allocation.r_min or 1, highest)
        raise BudgetInfeasible(
            f"a mean rank of {mean} is outside the feasible interval [{lowest}, {highest}]: "
            f"no {'target' if matched else 'linear map'} of the model can have a rank above "
            f"{highest}"
        )


def check_floor(
    request: CalibrationRequest, matrices: Shapes, matched: list[str] | None, *, size: int
) -> None:
    """Refuse a budget in parameters, bytes or a fraction below what the lowest ranks cost.

    Which of the named maps survive loading is not certain: a pretraining head or a tower is
    dropped. Of several stacks of blocks one is, so the cheapest one's cost is demanded.
    Without names, one rank of one map is, whose smaller side loading may have cut.
    """
    allocation = request.allocation
    lowest = 1 if allocation.r_min is None else allocation.r_min
    if matched is None:
        one_rank = min(min(shape) for shape in matrices.values()) + 1
        floor, what = min(lowest, 1) * one_rank, "even one rank of one module needs"
    else:
        costs: dict[str, int] = {}
        for name in matched:
            stack, *block = re.split(r"\.\d+\.", name, maxsplit=1)
            key = stack if block else name
            shape = matrices[name]
            costs[key] = costs.get(key, 0) + min(lowest, *shape) * sum(shape)
        floor, what = min(costs.values()), "the lowest ranks of the modules need"
    check_lowest_ranks(request.budget, floor=floor, what=what, size=size)


def first_places(entries: Iterable[str]) -> dict[str, int]:
    """Each entry once, and where it stands first."""
    found: dict[str, int] = {}
    for place, entry in enumerate(entries):
        found.setdefault(entry, place)
    return found


def inside_block(entry: str) -> str:
    """What follows the parts of the tree in a name: its last index and the rest, or its leaf."""
    *_, (start, _) = [(0, 0), *(m.span() for m in re.finditer(r"(?<![^.])\d+\.", entry))]
    return entry[start:] if start else entry.rpartition(".")[2]


def has_parts(config: Mapping[str, Any]) -> bool:
    """Whether the model is made of several, such as a vision tower and a language model."""
    return any(isinstance(part, Mapping) and "model_type" in part for part in config.values())


def has_experts(config: Mapping[str, Any]) -> bool:
    """Whether the model, or the language part of it, is a mixture of experts."""
    return any(largest_number(config, key) for key in EXPERT_COUNTS)


def check_lowest_ranks(budget: Budget, *, floor: int, what: str, size: int) -> None:
    """Refuse a budget below a floor in parameters.

    A fraction is one of the loaded model: a head may come to the checkpoint's ``size``, but
    none doubles it.
    """
    limits = {
        "fraction": budget.fraction and int(budget.fraction * 2 * size),
        "parameters": budget.parameters,
        "bytes": budget.bytes and budget.bytes // budget.bytes_per_parameter,
    }
    limit = limits.get(budget.unit)
    if limit is not None and limit < floor:
        raise BudgetInfeasible(
            f"budget {budget.unit}={budget.value:g} allows {limit} parameters; {what} "
            f"{floor}: the feasible interval starts no lower"
        )


def largest_number(config: Mapping[str, Any], key: str) -> int:
    """The largest number under a key, in a configuration or in those of its parts."""
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    return max((v for part in parts if isinstance(v := part.get(key), int)), default=0)


def unknown_entry(
    entry: str, index: int, names: Iterable[str], *, field: str = "target_modules"
) -> ValidationFailed:
    """An entry that means nothing, with near names; embeddings are never suggested.

    Args:
        entry: The entry.
        index: Its place in the list.
        names: Names of all modules.
        field: The list.
    """
    maps = [name for name in names if is_inner(name) or name.rpartition(".")[2] in HEADS]
    leaves = sorted({name.rpartition(".")[2] for name in maps})
    near = get_close_matches(entry, [*leaves, *maps], n=N_NEAR, cutoff=0.5)
    hint = f"near names: {near}" if near else f"its modules end in {leaves[:20]}"
    message = f"the model has no linear map {entry!r}; {hint}"
    return wrong_entry(index, message, "unknown_target", field=field)


def wrong_entry(
    index: int | None, message: str, type_: str, *, field: str = "target_modules"
) -> ValidationFailed:
    """A refusal of one entry of a list, or of the list."""
    place = f"body.{field}" if index is None else f"body.{field}[{index}]"
    return ValidationFailed(
        message, errors=[{"field": place, "message": message, "type": type_}]
    )
