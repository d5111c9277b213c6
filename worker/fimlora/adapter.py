"""Everything that touches PEFT: its defaults, and resizing a live adapter in place."""

import re

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from fimlora.errors import UnknownTarget


def default_target_modules(model: nn.Module) -> list[str]:
    """Names PEFT targets by default in models of this architecture.

    Args:
        model: A base model or a PEFT model; only its config and module names are read.

    Returns:
        Leaf names, or full names where PEFT's own default is a pattern over full names.

    Raises:
        UnknownTarget: PEFT has no default for the architecture.
    """
    config = getattr(model, "config", None)
    model_type: str = getattr(config, "model_type", "unknown")
    default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
    if default is None:
        known = ", ".join(sorted(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING))
        raise UnknownTarget(
            f"PEFT has no default target modules for model_type {model_type!r}; pass "
            f"target_modules (a list of names, or 'all-linear'). Defaults exist for: {known}"
        )
    if isinstance(default, str):
        return [name for name, _ in model.named_modules() if re.fullmatch(default, name)]
    return sorted(default)
