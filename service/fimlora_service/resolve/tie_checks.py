"""Refuse LoRA on both an embedding and the head that is one weight with it.

What a checkpoint lists tells: it has one matrix of the vocabulary, and its configuration does not
say that the head is a weight of its own. What is left of other choices is for the worker to see.
"""

from collections.abc import Mapping
from typing import Any

from fimlora_contract.requests import CalibrationRequest
from fimlora_service.resolve.endings import Endings
from fimlora_service.resolve.model_files import Shapes
from fimlora_service.resolve.target_checks import (
    HEADS,
    is_table,
    largest_number,
    wrong_entry,
)

# Heads that give a number for each entry of the vocabulary; others are of classifiers.
VOCABULARY_HEADS = frozenset({"lm_head", "embed_out"})


def check_ties(
    request: CalibrationRequest, *, shapes: Shapes, config: Mapping[str, Any]
) -> None:
    """Refuse both sides of a tied pair among the target modules.

    Raises:
        ValidationFailed: Names both, and what to ask for instead.
    """
    entries = request.target_modules
    if not isinstance(entries, list) or request.exclude_modules is not None:
        return
    if request.modules_to_save is not None:  # trained whole, neither has LoRA
        return
    table = tied_table(shapes, config)
    if table is None:
        return
    of_table = Endings([table])
    tables = [n for n, entry in enumerate(entries) if entry in of_table]
    heads = [
        n for n, entry in enumerate(entries) if entry.rpartition(".")[2] in VOCABULARY_HEADS
    ]
    if tables and heads:
        index = max(tables[0], heads[0])
        message = (
            f"{table!r} and {entries[heads[0]]!r} are one weight, and both are in target_modules: "
            "merging would add the updates of both to it, so that the merged model is another one; "
            "name one of them and serve the adapter unmerged, or train both whole with "
            "modules_to_save"
        )
        raise wrong_entry(index, message, "tied_targets")


def tied_table(shapes: Shapes, config: Mapping[str, Any]) -> str | None:
    """The embedding that is a model's output head, too; ``None`` where that is not certain."""
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    if any(part.get("tie_word_embeddings") is False for part in parts):
        return None
    if any(HEADS.intersection(name.split(".")) for name in shapes):
        return None  # it has a head of its own, packed or with more rows
    n_rows = largest_number(config, "vocab_size")
    found = [
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if len(shape) == 2 and shape[0] == n_rows
    ]
    if len(found) != 1 or not is_table(found[0], (n_rows,), config):
        return None
    return found[0]
