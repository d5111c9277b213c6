"""Which modules are targets by default, for the architectures where that is certain.

The worker asks PEFT, whose table cannot be read without loading torch. What stands here is the part
of it that has not changed since the oldest PEFT that is supported, and one architecture that it
lacks; tests hold it against PEFT and the worker. All else is for the worker to see.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fimlora_contract.requests import CalibrationRequest
from fimlora_service.resolve.endings import Endings
from fimlora_service.resolve.model_files import Shapes

_Q_V = ("q_proj", "v_proj")
_QUERY_VALUE = ("query", "value")
_FUSED = ("query_key_value",)
BY_TYPE: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "layoutlm"), _QUERY_VALUE),
    **dict.fromkeys(("llama", "mistral", "gemma", "gemma2", "qwen2", "stablelm"), _Q_V),
    **dict.fromkeys(("bart", "opt", "gptj", "gpt_neo"), _Q_V),
    **dict.fromkeys(("bloom", "gpt_neox", "falcon"), _FUSED),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
    **dict.fromkeys(("t5", "mt5"), ("q", "v")),
    "qwen3": _Q_V,
    "deberta-v2": ("query_proj", "value_proj"),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "distilbert": ("q_lin", "v_lin"),
}


def entries_of(
    request: CalibrationRequest, *, shapes: Shapes, config: Mapping[str, Any]
) -> Sequence[str] | str | None:
    """The target modules of a request, with the default where it is certain.

    Args:
        request: The request.
        shapes: Shape of each tensor of the checkpoint by name.
        config: The configuration of the model.

    Returns:
        What ``target_modules`` says, or the entries of the default. ``None`` where only the worker
        knows the default: of other architectures, of an adapter's own modules, of fused experts,
        and of checkpoints that name their matrices otherwise.
    """
    if request.target_modules is not None:
        return request.target_modules
    if request.calibration.adapter or request.target_parameters is not None:
        return None
    entries = BY_TYPE.get(str(config.get("model_type")), ())
    endings = Endings(
        name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2
    )
    return entries if entries and all(entry in endings for entry in entries) else None
