"""How much memory a device has left, and the most that was in use."""

import sys
from collections.abc import Callable

import torch

from fimlora.memory.host import KIB, free_host_bytes


def free_bytes(device: torch.device) -> int | None:
    """Say how much more memory this process can get on a device.

    Args:
        device: The device.

    Returns:
        Bytes, counting what torch holds in reserve; ``None`` where nobody says.
    """
    if device.type == "cuda":
        return _free_cuda_bytes(device)
    return free_host_bytes() if device.type == "cpu" else None


def peak_bytes(device: torch.device) -> int | None:
    """Say how much memory was in use at most.

    Args:
        device: The device.

    Returns:
        On CUDA what torch had allocated at once since its counter was last reset; else the
        largest resident size that this process has had so far; ``None`` where nobody counts.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIB


def reset_peak(device: torch.device) -> None:
    """Let `peak_bytes` begin anew, where it can: on CUDA.

    Args:
        device: The device.
    """
    if device.type == "cuda":
        torch.cuda.init()  # there are no counters before
        torch.cuda.reset_peak_memory_stats(device)


def _free_cuda_bytes(device: torch.device) -> int:
    # The share is known by index only, and "cuda" alone has none.
    index = torch.cuda.current_device() if device.index is None else device.index
    free, total = torch.cuda.mem_get_info(index)
    used = torch.cuda.memory_allocated(index)
    free += torch.cuda.memory_reserved(index) - used
    share: Callable[[int], float] = getattr(
        torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0
    )
    return max(0, min(free, int(share(index) * total) - used))
