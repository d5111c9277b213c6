"""Which modules are targets when nobody says: PEFT's own table, and a convention beside it.

The convention is that of PEFT's table: the projections of attention to queries and values; the
one that makes queries, keys and values at once, where there is but one; the maps up from the
latents, where queries or keys and values go through latents. A model without attention gets the
projection into its mixers instead. Each attention module is looked at by itself, so that text
and image parts of a model may have names of their own.
"""

import re

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from fimlora.errors import UnknownTarget
from fimlora.model.naming import Modules, is_linear, named_endings

# What an attention module calls the maps that are targets; the first row that it has all of.
ATTENTION = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("query_proj", "value_proj"),
    ("Wq", "Wv"),
    ("project_q", "project_v"),
    ("q_head", "v_head"),
    ("q_proj.linear", "v_proj.linear"),
    ("q_proj", "v_proj_current", "v_proj_delayed"),
    ("q_b_proj", "kv_b_proj"),
    ("q_proj", "kv_b_proj"),
    ("q_b_proj", "kv_proj"),
    ("qkv_proj",),
    ("Wqkv",),
    ("query_key_value",),
    ("c_attn",),
    ("qkv",),
    ("kv_proj",),
    ("q_proj",),  # of a layer that reads the keys and values of another one
)
# The same for what stands in the place of attention, with what tells it from other modules.
MIXERS = {"in_proj": "out_proj"}


def default_target_modules(model: nn.Module, modules: Modules) -> list[str]:
    """Name the modules that are targets by default.

    Args:
        model: A base model or a PEFT model; only its config is read.
        modules: The modules of the base model by name.

    Returns:
        PEFT's leaf names for the architecture, or full names: where PEFT's default is a pattern,
        or where there is none and the convention applies.

    Raises:
        UnknownTarget: PEFT has no default for the architecture, and no module keeps to the
            convention.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", "unknown")
    names = _by_peft(model_type, modules) or _by_convention(modules)
    if not names:
        raise UnknownTarget(
            f"PEFT has no default target modules for model_type {model_type!r}, and none of the "
            "model's linear maps bears a usual name of a projection to queries and values; pass "
            "target_modules: names, a regular expression, or 'all-linear'"
        )
    return names


def _by_peft(model_type: str, modules: Modules) -> list[str]:
    """What PEFT's table says, if the model has it."""
    default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type, ())
    if isinstance(default, str):
        return [name for name in modules if re.fullmatch(default, name)]
    endings = named_endings(modules)
    return sorted(default) if all(entry in endings for entry in default) else []


def _by_convention(modules: Modules) -> list[str]:
    """Full names, by the names that linear maps bear inside a module."""
    linear = {name for name, module in modules.items() if is_linear(module)}
    found: list[str] = []
    for name in modules:
        prefix = f"{name}." if name else ""
        rows = ([prefix + leaf for leaf in row] for row in ATTENTION)
        found += next((row for row in rows if linear.issuperset(row)), [])
    return found or [
        name
        for name in linear
        for start, leaf in [_split(name)]
        if leaf in MIXERS and f"{start}{MIXERS[leaf]}" in linear
    ]


def _split(name: str) -> tuple[str, str]:
    start, dot, leaf = name.rpartition(".")
    return start + dot, leaf
