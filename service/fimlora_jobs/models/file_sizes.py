"""How large the files of a model may be beside its weights: each is read whole, by somebody.

The largest tokenizers known have some 35 MiB; what is far beyond is none, and would take many
times as much memory before anything could say so.
"""

from collections.abc import Mapping

from fimlora_jobs.models.refusal import ModelRefused

WEIGHTS = ".safetensors"
MAX_BYTES = 128 << 20


def check_file_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse files that are too large to be what they are called.

    Args:
        sizes: Bytes of the files that a model is loaded from, by name.

    Raises:
        ModelRefused: Names one, its size and what is allowed.
    """
    for name, size in sorted(sizes.items()):
        if size > MAX_BYTES and not name.endswith(WEIGHTS):
            raise ModelRefused(
                f"its {name} has {size:,} bytes; beside weights, a file of a model may have "
                f"{MAX_BYTES:,}"
            )
