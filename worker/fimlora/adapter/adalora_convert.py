"""An AdaLoRA checkpoint as plain LoRA, exactly: what every tool can read. Without torch.

AdaLoRA's update of a weight is ``B diag(E) A alpha / (ranknum + 1e-5)``, A (r I), E (r 1) and B (O r),
``ranknum`` being the rank at the beginning whatever is left of it. Rows with E = 0 add nothing; of the
others, k, ``A' = A[k]`` and ``B' = B[:, k] E[k] alpha / ((ranknum + 1e-5) s)`` are LoRA of scale s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fimlora.adapter.config import TASK_TYPES, WRAPPER_PREFIX, rank_patterns, target_names
from fimlora.errors import InvalidAdapter, InvalidOption

Matrix = NDArray[np.floating[Any]]
_PARTS = ("lora_A", "lora_B", "lora_E")
NO_RANK = "AdaLoRA left it no rank, so it adds nothing"


@dataclass(frozen=True, slots=True)
class PlainLora:
    """LoRA that does what an AdaLoRA adapter did.

    Attributes:
        matrices: A (k I) and B (O k) by module name, in float32.
        scale: The one effective scale of all.
        left_out: Modules that kept no rank, with the reason.
        others: What else the checkpoint holds, such as a head trained in full, by key.
        config: Content of ``adapter_config.json``, in layout B.
    """

    matrices: Mapping[str, tuple[Matrix, Matrix]]
    scale: int | float
    left_out: Mapping[str, str]
    others: Mapping[str, NDArray[Any]]
    config: Mapping[str, Any]


def plain_lora(
    tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any], *, scale: int | float = 1
) -> PlainLora:
    """Convert an AdaLoRA checkpoint to plain LoRA of one constant scale.

    Args:
        tensors: Content of ``adapter_model.safetensors`` by its keys; half precision is given
            as float32.
        config: Content of ``adapter_config.json``.
        scale: Effective scale ``s = alpha / rank`` of every module of the result; it changes how
            B is written, not what the adapter does.

    Returns:
        The same adapter as LoRA.

    Raises:
        InvalidAdapter: It is no AdaLoRA checkpoint, a matrix is missing, has another shape or is
            not finite, or no module kept a rank.
        InvalidOption: The scale is not above 0 and finite.
    """
    if not 0 < scale < float("inf"):
        raise InvalidOption(f"scale={scale!r}; it must be above 0 and finite")
    factor = _factor(config)
    modules, others = _by_module(tensors)
    matrices, left_out = {}, {}
    for name in sorted(modules):
        A, B, E = _checked(name, modules[name])
        kept = E[:, 0] != 0
        if not kept.any():
            left_out[name] = NO_RANK
            continue
        scaled = (
            B[:, kept].astype(np.float64) * E[kept, 0].astype(np.float64) * (factor / scale)
        )
        # In the order of C, whatever was cut: safetensors writes memory as it lies.
        matrices[name] = (
            A[kept].astype(np.float32, order="C"),
            scaled.astype(np.float32, order="C"),
        )
    if not matrices:
        raise InvalidAdapter(
            "no module of the AdaLoRA checkpoint kept a rank: E is 0 everywhere"
        )
    ranks = {name: len(A) for name, (A, _) in matrices.items()}
    return PlainLora(matrices, scale, left_out, others, _config(config, ranks, scale))


def _factor(config: Mapping[str, Any]) -> float:
    """What the product of the matrices is multiplied by, as PEFT computes it in float32.

    Returns:
        Alpha over the rank at the beginning and a little.

    Raises:
        InvalidAdapter: The config is not AdaLoRA's, or lacks what says it.
    """
    if config.get("peft_type") != "ADALORA":
        raise InvalidAdapter(f"peft_type is {config.get('peft_type')!r}, not 'ADALORA'")
    found = [config.get(name) for name in ("lora_alpha", "init_r")]
    for name, value in zip(("lora_alpha", "init_r"), found, strict=True):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < float("inf"):  # type: ignore[operator]
            raise InvalidAdapter(f"{name} is {value!r} in the config; it must be above 0")
    alpha, ranknum = map(np.float32, found)
    return float(alpha / (ranknum + np.float32(1e-5)))


def _by_module(
    tensors: Mapping[str, NDArray[Any]],
) -> tuple[dict[str, dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """Sort tensors by the module they belong to, those of modules trained in full apart."""
    modules: dict[str, dict[str, NDArray[Any]]] = {}
    others = {}
    for key, tensor in tensors.items():
        owner, _, part = key.removesuffix(".default").rpartition(".")
        if part in _PARTS and key.startswith(WRAPPER_PREFIX):
            modules.setdefault(owner.removeprefix(WRAPPER_PREFIX), {})[part] = tensor
        else:
            others[key] = tensor
    return modules, others


def _checked(
    name: str, parts: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """See that the matrices of a module fit each other.

    Returns:
        A, B and E.

    Raises:
        InvalidAdapter: They do not.
    """
    if missing := sorted(set(_PARTS) - parts.keys()):
        raise InvalidAdapter(f"{name} has no {missing[0]} in the AdaLoRA checkpoint")
    A, B, E = (parts[part] for part in _PARTS)
    fits = A.ndim == B.ndim == E.ndim == 2 and E.shape == (len(A), 1) and B.shape[1] == len(A)
    if not fits:
        raise InvalidAdapter(
            f"{name}: A {A.shape}, B {B.shape} and E {E.shape} are not r x d_in, d_out x r, r x 1"
        )
    for part, tensor in zip(_PARTS, (A, B, E), strict=True):
        if not np.isfinite(tensor).all():
            raise InvalidAdapter(f"{name}.{part} holds numbers that are not finite")
    return A, B, E


def _config(
    given: Mapping[str, Any], ranks: Mapping[str, int], scale: int | float
) -> dict[str, Any]:
    """The config of plain LoRA with these ranks, in layout B."""
    alphas = {name: _number(scale * rank) for name, rank in ranks.items()}
    rank_pattern, alpha_pattern = rank_patterns(ranks, alphas)
    widest = max(sorted(ranks), key=ranks.__getitem__)
    task = given.get("task_type")
    return {
        "alpha_pattern": alpha_pattern,
        "base_model_name_or_path": given.get("base_model_name_or_path"),
        "bias": given.get("bias", "none"),
        "fan_in_fan_out": bool(given.get("fan_in_fan_out", False)),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alphas[widest],
        "lora_dropout": given.get("lora_dropout", 0.0),
        "modules_to_save": given.get("modules_to_save"),
        "peft_type": "LORA",
        "r": ranks[widest],
        "rank_pattern": rank_pattern,
        "target_modules": target_names(ranks),
        "task_type": task if task in TASK_TYPES else None,
        "use_rslora": False,
    }


def _number(value: int | float) -> int | float:
    return int(value) if value == int(value) else value
