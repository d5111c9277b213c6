"""Whether torch sees the GPU that the operator asks for, before the first job is taken.

A process of its own asks: the worker's parent must not load torch.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence

NO_DEVICE = 3
# A cold import of torch takes tens of seconds on a slow disk.
PATIENCE_S = 180.0
ASK_TORCH = (
    sys.executable,
    "-c",
    f"import sys, torch; sys.exit(0 if torch.cuda.is_available() else {NO_DEVICE})",
)


def why_no_cuda(
    environment: Mapping[str, str], *, question: Sequence[str] = ASK_TORCH
) -> str | None:
    """Say why a worker with ``FIMLORA_DEVICE=cuda`` cannot run; ``None`` when it can.

    Args:
        environment: Of the process that will run the models.
        question: A command that ends with status 0 if there is a device, and with 3 if not.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    way_out = "use a machine with a GPU and a torch built for it, or set FIMLORA_DEVICE=auto"
    try:
        asked = subprocess.run(
            question,
            env=dict(environment),
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return (
            f"FIMLORA_DEVICE=cuda, but torch did not answer ({type(error).__name__}); {way_out}"
        )
    if asked.returncode == 0:
        return None
    found = "sees no CUDA device" if asked.returncode == NO_DEVICE else "cannot be loaded"
    return f"FIMLORA_DEVICE=cuda, but torch {found} (CUDA_VISIBLE_DEVICES={visible}); {way_out}"
