"""A checkpoint of AdaLoRA in a folder, written as plain LoRA of the same function.

It is held in memory as a whole, unlike plain LoRA. Nothing here imports torch.
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fimlora.adapter.adalora_convert import PlainLora, plain_lora
from fimlora.adapter.config import WRAPPER_PREFIX
from fimlora.adapter.trained.read import CONFIG, WEIGHTS, Limits, read_weights
from fimlora.adapter.trained.tensors import (
    FLOAT_TYPES,
    copied,
    new_floats,
    read_floats,
    write_tensors,
)
from fimlora.errors import InvalidAdapter

_MOST_ELEMENTS = 8  # times those that one matrix may have: of all matrices together


def is_adalora(fields: Mapping[str, Any]) -> bool:
    """Tell AdaLoRA by its config.

    Args:
        fields: The content of ``adapter_config.json``.

    Returns:
        Whether it is AdaLoRA.
    """
    return fields.get("peft_type") == "ADALORA"


def write_plain(
    folder: Path, output: Path, fields: Mapping[str, Any], *, limits: Limits
) -> PlainLora:
    """Write a checkpoint of AdaLoRA as plain LoRA, in float32.

    Args:
        folder: The checkpoint's folder.
        output: An empty folder.
        fields: The content of its config.
        limits: How large it may be.

    Returns:
        What was written.

    Raises:
        InvalidAdapter: It is no sound checkpoint of AdaLoRA.
    """
    for field in ("lora_alpha", "init_r"):
        value = fields.get(field)
        if type(value) not in {int, float} or not 0 < value < 1e9:  # type: ignore[operator]
            raise InvalidAdapter(f"{field} is {value!r:.40}; it must be a number above 0")
    entries = read_weights(folder, limits=limits)
    ours = {name: entry for name, entry in entries.items() if ".lora_" in name}
    if odd := [name for name, entry in ours.items() if entry.dtype not in FLOAT_TYPES]:
        raise InvalidAdapter(f"{odd[0]} is of type {entries[odd[0]].dtype!r:.20}")
    most = _MOST_ELEMENTS * limits.elements
    if sum(math.prod(entry.shape) for entry in ours.values()) > most:
        raise InvalidAdapter(f"the matrices have over {most} numbers together")
    tensors = {
        name: read_floats(folder / WEIGHTS, name, entry).astype(np.float32)
        for name, entry in ours.items()
    }
    plain = plain_lora(tensors, fields)
    new = {
        f"{WRAPPER_PREFIX}{name}.lora_{part}.weight": new_floats(
            matrix.shape, "F32", partial(matrix.astype, np.float64)
        )
        for name, pair in plain.matrices.items()
        for part, matrix in zip("AB", pair, strict=True)
    }
    others = {n: copied(folder / WEIGHTS, e) for n, e in entries.items() if n not in ours}
    write_tensors(output / WEIGHTS, new | others)
    (output / CONFIG).write_text(json.dumps(dict(plain.config)), encoding="utf-8")
    return plain
