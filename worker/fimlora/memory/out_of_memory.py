"""What it looks like when memory runs out, and how to get back what the failure holds on to.

Torch raises an error of its own on a GPU, a plain ``RuntimeError`` on a CPU, and libraries
below it have further words for it. A traceback keeps the variables of every function that
it went through, activations among them, for as long as anybody keeps the exception.
"""

import errno
import gc
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fimlora.errors import OutOfDeviceMemory, OutOfMemory
from fimlora.memory.device import free_bytes

_SIGNS = (
    "DefaultCPUAllocator",
    "Cannot allocate memory",  # a file that cannot be mapped
    "bad_alloc",
    "out of memory",
    "ALLOC_FAILED",  # cuBLAS and cuDNN
    "could not create a memory object",  # oneDNN
)
_ASKED = re.compile(
    r"(?:tried to allocate|unable to mmap) ([\d.]+) (bytes|[KMG]iB)", re.IGNORECASE
)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def is_out_of_memory(error: BaseException) -> bool:
    """See whether an error says that memory ran out.

    Args:
        error: What was raised.

    Returns:
        Whether less memory would have done.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def bytes_asked_for(error: BaseException) -> int | None:
    """Read how much could not be had.

    Args:
        error: What was raised.

    Returns:
        The size of the allocation that failed; ``None`` where the error does not say.
    """
    found = _ASKED.search(str(error))
    return round(float(found[1]) * _UNITS[found[2].lower()]) if found else None


def release(error: BaseException, device: torch.device) -> None:
    """Free what a failure holds on to; the exception stays readable.

    Args:
        error: What was raised.
        device: Where it happened.
    """
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def out_of_memory(what: str, error: BaseException, device: torch.device) -> OutOfMemory:
    """Make the error that names need and limit; call it before `release`.

    Args:
        what: What does not fit, and how to need less.
        error: What was raised.
        device: Where there is no room.

    Returns:
        The error, to be raised.
    """
    asked, free = bytes_asked_for(error), free_bytes(device)
    need = "more" if asked is None else f"another {format_bytes(asked)}"
    left = "none" if free is None else format_bytes(free)
    return error_for(device)(f"{what}: {need} was asked for when {left} was left on {device}")


def error_for(device: torch.device) -> type[OutOfMemory]:
    """Choose the error class by where memory ran out.

    Args:
        device: The device.

    Returns:
        The class; each has its own code.
    """
    return OutOfDeviceMemory if device.type == "cuda" else OutOfMemory


@contextmanager
def named_out_of_memory(what: str, device: torch.device) -> Iterator[None]:
    """Turn running out of memory inside the block into the engine's own error.

    Args:
        what: What does not fit then, and how to need less.
        device: Where the block computes.

    Yields:
        None.

    Raises:
        OutOfMemory: Memory ran out; what the failure held is free again.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        named = out_of_memory(what, error, device)
        release(error, device)
        raise named from error


def format_bytes(n_bytes: int) -> str:
    """Write a size for people.

    Args:
        n_bytes: The size.

    Returns:
        It in the largest unit that it fills.
    """
    for unit in ("GiB", "MiB", "KiB"):
        if n_bytes >= _UNITS[unit.lower()]:
            return f"{n_bytes / _UNITS[unit.lower()]:.1f} {unit}"
    return f"{n_bytes} bytes"
