"""Which device a worker runs on, and that no other worker of this machine runs there."""

import fcntl
import os
import tempfile
from pathlib import Path

from fimlora_worker.errors import WorkerError


class DeviceLock:
    """Keeps a device for this process until it ends, so that no orphan shares it."""

    def __init__(self) -> None:
        self._handles: dict[str, int] = {}

    def hold(self, device: str) -> None:
        """Lock a device; waits for whoever has it."""
        if device not in self._handles:
            path = Path(tempfile.gettempdir()) / f"fimlora-{device.replace('/', '_')}.lock"
            self._handles[device] = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(self._handles[device], fcntl.LOCK_EX)


def choose_device(wanted: str, *, lock: DeviceLock, visible: str) -> str:
    """``cpu`` or ``cuda``; a CUDA device is locked before it is used.

    Raises:
        WorkerError: The operator asked for CUDA and there is none.
    """
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        lock.hold(f"cuda-{visible}")
        return "cuda"
    if wanted == "cuda":
        raise WorkerError("FIMLORA_DEVICE=cuda, but torch sees no CUDA device")
    return "cpu"
