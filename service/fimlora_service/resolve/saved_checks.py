"""Check what a request has trained whole against the weights a checkpoint lists.

Only what is certain is refused: a head may be drawn as the model is loaded, a tied one is in the
checkpoint under the other name, and a model of several parts calls its modules otherwise then.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from fimlora.whole_names import inside_saved
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.errors import ValidationFailed
from fimlora_service.resolve.endings import Endings
from fimlora_service.resolve.exclusion_checks import OFTEN_DRAWN
from fimlora_service.resolve.model_files import Shapes
from fimlora_service.resolve.target_checks import (
    HEADS,
    N_NEAR,
    first_places,
    has_experts,
    has_parts,
    inside_block,
    is_table,
    wrong_entry,
)

FIELD = "modules_to_save"


def check_saved(
    request: CalibrationRequest, *, shapes: Shapes, config: Mapping[str, Any]
) -> None:
    """Refuse names of no module, and targets that are to be trained whole, too.

    Raises:
        ValidationFailed: Names the entry, and what it could have meant.
    """
    entries = request.modules_to_save
    if entries is None:
        return
    _check_both(request, entries)
    if has_experts(config):
        return
    modules, may_differ = modules_of(shapes), has_parts(config)
    endings = Endings(modules)
    for entry, index in first_places(entries).items():
        if entry in endings or (may_differ and inside_block(entry) in endings):
            continue
        if not OFTEN_DRAWN.intersection(entry.split(".")):
            raise _unknown(entry, index, modules)
    if not may_differ:
        _check_targets_left(request, entries, endings)


def saved_parameters(
    request: CalibrationRequest, *, shapes: Shapes, config: Mapping[str, Any]
) -> int | None:
    """Parameters of what is trained whole; ``None`` where only the loaded model can tell."""
    entries = request.modules_to_save
    if entries is None or has_experts(config) or has_parts(config):
        return None
    endings = Endings(modules_of(shapes))
    names: set[str] = set()
    sizes = 0
    for entry in dict.fromkeys(entries):
        found = endings.meant(entry)
        names.update(found)
        if not found:  # tied to the table, or drawn
            table = _table(shapes, config) if entry.rpartition(".")[2] in HEADS else None
            if table is None:
                return None
            sizes += table
    return sizes + sum(math.prod(shapes[name]) for name in inside_saved(shapes, names))


def modules_of(shapes: Shapes) -> set[str]:
    """Names of the modules that hold a checkpoint's weights, and of those around them."""
    return {name[: dot.start()] for name in shapes for dot in re.finditer(r"\.", name)}


def _check_both(request: CalibrationRequest, entries: Iterable[str]) -> None:
    targets = request.target_modules
    if not isinstance(targets, list):
        return
    saved = frozenset(entries)
    for index, entry in enumerate(targets):
        if entry in saved:
            message = (
                f"{entry!r} is in target_modules and in modules_to_save: PEFT trains it whole and "
                "puts no LoRA on it; leave it out of one of both"
            )
            raise wrong_entry(index, message, "targeted_and_saved")


def _check_targets_left(
    request: CalibrationRequest, entries: list[str], endings: Endings
) -> None:
    """Refuse an entry of the targets all of whose modules are trained whole."""
    targets = request.target_modules
    wholes = endings.meant_by(entries)
    for entry, index in first_places(targets if isinstance(targets, list) else ()).items():
        meant = endings.meant(entry)
        if meant and len(inside_saved(meant, wholes)) == len(meant):
            message = (
                f"{entry!r} means nothing but what modules_to_save={entries} trains whole, such as "
                f"{min(meant)!r}, and PEFT puts no LoRA on that; leave it out of one of both"
            )
            raise wrong_entry(index, message, "targeted_and_saved")


def _table(shapes: Shapes, config: Mapping[str, Any]) -> int | None:
    """Numbers in the one table of a vocabulary, if the head is tied to it."""
    if not config.get("tie_word_embeddings", True):
        return None
    tables = [
        math.prod(shape)
        for name, shape in shapes.items()
        if len(shape) == 2
        and shape[0] == config.get("vocab_size")
        and is_table(name.removesuffix(".weight"), shape, config)
    ]
    return tables[0] if len(tables) == 1 else None


def _unknown(entry: str, index: int, modules: Collection[str]) -> ValidationFailed:
    leaves = sorted({n.rpartition(".")[2] for n in modules} - {*map(str, range(1000))})
    near = get_close_matches(entry, sorted({*leaves, *modules}), n=N_NEAR, cutoff=0.5)
    hint = f"near names: {near}" if near else f"its modules end in {leaves[:20]}"
    message = f"the model has no module {entry!r}; {hint}"
    return wrong_entry(index, message, "unknown_module", field=FIELD)
