"""Whether a checkpoint's weights are quantised: by its configuration, its files, its dtypes.

Gradients are measured through weights as they were trained, so a quantised model is refused
whatever would run it; the ranks of its unquantised base hold for it.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fimlora_jobs.models.config_parts import parts_of
from fimlora_jobs.models.refusal import ModelRefused

KEYS = ("quantization_config", "compression_config", "quantization")
# What tools for GPTQ, AWQ and ModelOpt write beside a config.json.
FILES = {
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
    "hf_quant_config.json": "ModelOpt",
}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
WEIGHTS = ("weight", "qweight", "weight_packed", "_blocks")
WAY_OUT = (
    "give the unquantised model it was made from; the ranks hold for the quantised one, too"
)


def check_unquantised(
    config: Mapping[str, Any],
    *,
    names: Collection[str] = (),
    dtypes: Mapping[str, str] | None = None,
) -> None:
    """Refuse a quantised checkpoint.

    Args:
        config: Its ``config.json``.
        names: Names of its files.
        dtypes: Element type of each weight by name, as safetensors headers have it.

    Raises:
        ModelRefused: Says by what it is known.
    """
    sign = next(_signs(config, names, dtypes or {}), None)
    if sign:
        raise ModelRefused(f"its weights are quantised ({sign}): {WAY_OUT}")


def _signs(
    config: Mapping[str, Any], names: Collection[str], dtypes: Mapping[str, str]
) -> Iterator[str]:
    for part in parts_of(config):
        for key in KEYS:
            if found := part.get(key):
                yield f"{_method(found)}, by {key} in config.json"
    yield from (f"{tool}, by {file}" for file, tool in FILES.items() if file in names)
    for name, dtype in dtypes.items():
        if name.endswith(WEIGHTS) and dtype not in FLOATS:
            yield f"{name} is stored as {dtype}"


def _method(found: Any) -> str:
    if not isinstance(found, Mapping):
        return "method unknown"
    method = found.get("quant_method") or found.get("quant_algo")
    if isinstance(method, str):
        return method
    bits = [n for n in (4, 8) if found.get(f"load_in_{n}bit")]
    return f"bitsandbytes {bits[0]} bit" if bits else "method unknown"
