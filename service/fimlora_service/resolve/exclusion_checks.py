"""Check what a request leaves out of its targets against the weights a checkpoint lists.

Only what is certain is refused: a module may have no weights, be drawn as the model is loaded,
or be called otherwise then. What an expression leaves out, the worker sees.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from fimlora_contract.requests import CalibrationRequest
from fimlora_service.resolve.endings import Endings
from fimlora_service.resolve.model_files import Shapes
from fimlora_service.resolve.target_checks import (
    HEADS,
    first_places,
    has_experts,
    has_parts,
    inside_block,
    is_table,
    unknown_entry,
    wrong_entry,
)

# Names of modules that a checkpoint may lack: drawn for a task, or without weights.
OFTEN_DRAWN = HEADS | {"pooler", "pre_classifier"}
OFTEN_EMPTY = re.compile(r"drop|act|rotary|rope|softmax|pool|flatten|identity|loss|norm")


def check_exclusions(
    request: CalibrationRequest, *, shapes: Shapes, config: Mapping[str, Any]
) -> None:
    """Refuse entries that leave nothing out, and those that leave no target.

    Raises:
        ValidationFailed: Names the entry, and what it could have meant.
    """
    entries = request.exclude_modules
    if not isinstance(entries, list) or has_experts(config):
        return
    modules = {name.rpartition(".")[0] for name in shapes if "." in name}
    holders = {name[: dot.start()] for name in modules for dot in re.finditer(r"\.", name)}
    by_end, holders_by_end = Endings(modules), Endings(holders)
    for entry, index in first_places(entries).items():
        forms = [entry, inside_block(entry)] if has_parts(config) else [entry]
        if not any(form in by_end for form in forms):
            is_holder = any(form in holders_by_end for form in forms)
            _refuse_entry(index, entry, modules, is_holder=is_holder)
    if has_parts(config) or request.target_modules is None:
        return  # called otherwise once loaded, or known to the worker only
    if isinstance(request.target_modules, list) or request.target_modules == "all-linear":
        _check_left(request, entries, shapes, config)


def _refuse_entry(index: int, entry: str, modules: Collection[str], *, is_holder: bool) -> None:
    """Refuse what means no module that has weights, unless one may be there without any."""
    if is_holder:
        message = (
            f"{entry!r} holds modules and is no target itself; as in PEFT, an expression leaves "
            f"out what is inside: '.*{re.escape(entry)}\\..*'"
        )
        raise wrong_entry(index, message, "not_a_linear_map", field="exclude_modules")
    parts = entry.split(".")
    if not OFTEN_DRAWN.intersection(parts) and not OFTEN_EMPTY.search(parts[-1]):
        raise unknown_entry(entry, index, modules, field="exclude_modules")


def _check_left(
    request: CalibrationRequest, entries: list[str], shapes: Shapes, config: Mapping[str, Any]
) -> None:
    matrices = {
        name.removesuffix(".weight"): shape for name, shape in shapes.items() if len(shape) == 2
    }
    targets = request.target_modules
    if isinstance(targets, list):
        endings = Endings(matrices)
        meant = endings.meant_by(targets)
        is_whole = all(entry in endings for entry in dict.fromkeys(targets))
    else:
        meant = {
            name
            for name, shape in matrices.items()
            if not is_table(name, shape, config) and name.rpartition(".")[2] not in HEADS
        }
        is_whole = True
    left = meant - Endings(meant).meant_by(entries)
    if meant and is_whole and not left:
        message = (
            f"leaves out all {len(meant)} modules that target_modules={targets!r} means; "
            "exclude fewer, or target others"
        )
        raise wrong_entry(None, message, "no_target_left", field="exclude_modules")
