"""Load a model from its folder as streaming reads it.

Missing weights are drawn from a seed, and all are aligned: a matrix kernel may round otherwise
elsewhere.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

# As torch's own allocator has it.
ALIGNMENT = 64


def align(model: nn.Module) -> nn.Module:
    """Move weights that are not aligned; ``from_pretrained`` may leave them as the file has them.

    Args:
        model: A model on any device; it is changed in place.

    Returns:
        The model, with the same values.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()
    return model


def experts_per_token(config: Any) -> int:
    """Say how many experts of a mixture a token goes through.

    Returns:
        What the config says; 1 for a model that is no mixture.
    """
    return getattr(config, "num_experts_per_tok", None) or 1


def load(
    model_class: Any,
    folder: Path,
    config: Any,
    dtype: torch.dtype,
    seed: int,
    *,
    ignore_mismatched_sizes: bool = False,
) -> Any:
    """Load as streaming does: missing weights from the seed, and aligned."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        model = model_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
    return align(model)
