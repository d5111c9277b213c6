"""Whether the fields of a ``config.json`` hold what transformers reads there, by a table of kinds.

The table (``docs/generate.py`` makes it) has what any family allows under a name; a family of
the worker's that it does not know is not held against it.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fimlora_jobs.models.config_parts import parts_of
from fimlora_jobs.models.heads import known_heads
from fimlora_jobs.models.refusal import ModelRefused

TABLE = "config_kinds.json"
KINDS = {
    bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict",
    type(None): "null",
}  # fmt: skip
WORDS = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "str": "text",
    "list": "a list", "dict": "an object", "null": "null",
}  # fmt: skip


def check_kinds(config: Mapping[str, Any]) -> None:
    """Refuse fields that hold what no family could read.

    Args:
        config: The content of a ``config.json``.

    Raises:
        ModelRefused: Names the field, what it holds and what is allowed.
    """
    for part in parts_of(config):
        if not known_heads().get(str(part.get("model_type"))):
            continue
        for field, value in part.items():
            allowed = known_kinds().get(field)
            if allowed is not None and not _is_one(KINDS[type(value)], allowed):
                words = " or ".join(WORDS[kind] for kind in sorted(allowed))
                raise ModelRefused(
                    f"its config.json has {WORDS[KINDS[type(value)]]} for {field}; allowed is "
                    f"{words}"
                )


def _is_one(kind: str, allowed: frozenset[str]) -> bool:
    # Written without a point, a number is whole; null stands for the default.
    return kind in allowed or kind == "null" or (kind == "int" and "float" in allowed)


@cache
def known_kinds() -> Mapping[str, frozenset[str]]:
    """Kinds of JSON by name of a field."""
    table = json.loads((files(__package__) / TABLE).read_text(encoding="utf-8"))
    return {field: frozenset(kinds) for field, kinds in table["kinds"].items()}
