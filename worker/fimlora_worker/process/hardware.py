"""What a worker runs on, found without touching the device: the parent must not.

The driver's own tool knows GPUs without a CUDA context, and the control group knows how much
of the machine's memory is ours.
"""

import logging
import subprocess

from fimlora.memory.host import total_host_bytes
from fimlora_contract.workers import Hardware

MIB = 1 << 20
PATIENCE_S = 10.0
log = logging.getLogger(__name__)


def find_hardware(device: str, *, visible: str, nvidia_smi: str = "nvidia-smi") -> Hardware:
    """Device and memory of this worker.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        visible: Index or id of the GPU, as in ``CUDA_VISIBLE_DEVICES``.
        nvidia_smi: The driver's tool.
    """
    memory = total_host_bytes()
    gpu = None if device == "cpu" else ask_driver(visible, nvidia_smi=nvidia_smi)
    if gpu is None and device != "cuda":
        return Hardware(
            device="cpu", device_name=None, memory_bytes=memory, host_memory_bytes=memory
        )
    name, gpu_memory = gpu or (None, None)
    return Hardware(
        device="cuda", device_name=name, memory_bytes=gpu_memory, host_memory_bytes=memory
    )


def ask_driver(visible: str, *, nvidia_smi: str) -> tuple[str, int] | None:
    """Name and memory of a GPU; ``None`` if there is none that the driver knows."""
    question = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    try:
        answer = subprocess.run(
            [nvidia_smi, *question, f"--id={visible.split(',', maxsplit=1)[0]}"],
            capture_output=True, text=True, timeout=PATIENCE_S, check=True,
        ).stdout  # fmt: skip
        name, _, mebibytes = answer.splitlines()[0].rpartition(",")
        return name.strip(), int(mebibytes) * MIB
    except FileNotFoundError:
        return None
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        log.warning("hardware.driver_unclear", extra={"error": type(error).__name__})
        return None
