"""The table of what fields of a configuration may hold, from the installed transformers."""

import json
import types
import typing
from collections import defaultdict
from typing import Any

KINDS = {
    bool: "bool", int: "int", float: "float", str: "str", list: "list", tuple: "list",
    dict: "dict", type(None): "null",
}  # fmt: skip


def config_kinds() -> str:
    """Kinds of JSON by field, over all families that can be calibrated.

    Returns:
        The table as JSON. A field with a type of transformers' own, or of torch's, is left out:
        anything may be written for it.
    """
    import torch
    from transformers import CONFIG_MAPPING

    from fimlora_jobs.models.heads import CAUSAL, CLASSIFIES, MULTIMODAL, known_heads

    found: dict[str, set[str]] = defaultdict(set)
    for kind, heads in known_heads().items():
        if heads & {CAUSAL, CLASSIFIES, MULTIMODAL}:
            hints = typing.get_type_hints(CONFIG_MAPPING[kind], localns={"torch": torch})
            for field, hint in hints.items():
                found[field] |= kinds_of(hint)
    known = {f: sorted(k) for f, k in sorted(found.items()) if "" not in k}
    lines = ",\n".join(f"{json.dumps(f)}: {json.dumps(k)}" for f, k in known.items())
    return f'{{"kinds": {{\n{lines}\n}}}}\n'


def kinds_of(hint: Any) -> set[str]:
    """Kinds of JSON that a type allows; the empty one for a type of somebody else's."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return set().union(*map(kinds_of, arguments))
    if origin is typing.Literal:
        return {KINDS[type(value)] for value in arguments}
    if origin is typing.Annotated:
        return kinds_of(arguments[0])
    return {KINDS.get(origin or hint, "")}
