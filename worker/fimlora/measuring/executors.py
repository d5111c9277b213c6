"""Choose between the two ways to measure a model, and fall back from one to the other.

Both give the same statistics, so which one it was is a fact about the run only; see
`fimlora.statistics.options`.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

from fimlora.errors import InvalidOption, OutOfMemory, UnsupportedModule
from fimlora.measuring.micro_batch_size import MicroBatches
from fimlora.memory.device import free_bytes
from fimlora.memory.host import free_host_bytes
from fimlora.memory.need import MemoryNeed
from fimlora.memory.out_of_memory import error_for, format_bytes, named_out_of_memory, release
from fimlora.statistics.options import Executor

# The inputs of blocks may take one part in so many of the host memory that is left; the
# rest is for the blocks themselves, and for what one of them computes.
_BOUNDARY_PARTS = 2
# Statistics, or the sums of a shard.
Found = TypeVar("Found")
# Measures with micro-batches of at most so many examples.
MeasureBy = Callable[[int], Found]
# How much memory is left on a device; ``None`` where nobody knows.
FreeBytes = Callable[[torch.device], int | None]
_LESS = "cut examples shorter, or run in a narrower dtype"


def parse_executor(executor: str) -> Executor:
    """Read the name of an executor.

    Returns:
        The executor.

    Raises:
        InvalidOption: There is none of that name.
    """
    if executor not in set(Executor):
        allowed = ", ".join(repr(known.value) for known in Executor)
        raise InvalidOption(f"executor={executor!r}; allowed are {allowed}")
    return Executor(executor)


def boundary_limit() -> int | None:
    """Say how much host memory a streamed run may hold the inputs of its blocks in.

    Returns:
        Bytes for ``max_boundary_bytes``; ``None`` where nobody knows what is left.
    """
    left = free_host_bytes()
    return None if left is None else left // _BOUNDARY_PARTS


def measure_where_it_fits(
    executor: Executor,
    *,
    device: torch.device,
    need: MemoryNeed,
    largest_batch: int,
    resident: MeasureBy[Found],
    streamed: MeasureBy[Found],
    free: FreeBytes = free_bytes,
) -> Found:
    """Measure by the executor that was asked for, or by the one that fits.

    Args:
        executor: Which one; ``AUTO`` begins resident if the model seems to fit, and turns
            to streamed if it does not, or once one example at a time is too much.
        device: Where to run.
        need: What the resident model needs besides what it has already.
        largest_batch: Examples of the largest batch, or the micro-batch that was asked for.
        resident: Loads the model and measures it. When it has raised, nothing may keep the
            model any more.
        streamed: Measures from the folder.
        free: Says how much memory is left.

    Returns:
        What it gives.

    Raises:
        OutOfMemory: The executor that was asked for, or both, need more than there is.
        UnsupportedModule: The model was to be streamed and cannot be.
    """  # noqa: DOC502 - the helpers raise
    if executor is Executor.STREAMED:
        return _stream(streamed, largest_batch, device)
    too_large = shortage(need, device, free=free)
    if executor is Executor.RESIDENT or too_large is None:
        try:
            return _run_resident(resident, need, largest_batch, device, free)
        except OutOfMemory as error:
            if executor is Executor.RESIDENT:
                raise
            too_large = error
            release(error, device)
    try:
        return _stream(streamed, largest_batch, device)
    except (OutOfMemory, UnsupportedModule) as error:
        both = f"the model does not fit ({too_large}) and cannot be streamed ({error})"
        raise type(too_large)(both) from error


def shortage(
    need: MemoryNeed, device: torch.device, *, free: FreeBytes = free_bytes
) -> OutOfMemory | None:
    """Compare what a resident model needs with what there is.

    Args:
        need: The need.
        device: Where it is to run.
        free: Says how much memory is left.

    Returns:
        An error that names both; ``None`` if it seems to fit.
    """
    needs = {device: need}
    if device.type != "cpu":
        needs[torch.device("cpu")] = MemoryNeed(need.converted_bytes, 0)
    for place, there in needs.items():
        left = free(place)
        if left is not None and not there.fits(left):
            return error_for(place)(
                f"weights of {format_bytes(there.weight_bytes)}"
                + (f", {format_bytes(r)} to record" if (r := there.recorded_bytes) else "")
                + f" and about {format_bytes(there.example_bytes)} for one example, with "
                f"{format_bytes(left)} left on {place}"
            )
    return None


def _run_resident(
    resident: MeasureBy[Found],
    need: MemoryNeed,
    largest_batch: int,
    device: torch.device,
    free: FreeBytes,
) -> Found:
    size = largest_batch
    if device.type == "cpu":  # where a process that takes too much is killed, not refused
        size = need.examples_within(free(device), largest_batch)
    with named_out_of_memory(f"the model does not fit; stream it, {_LESS}", device):
        return resident(size)


def _stream(streamed: MeasureBy[Found], largest_batch: int, device: torch.device) -> Found:
    """Begin again with half as many examples at once for as long as memory runs out."""
    sizes = MicroBatches(None)
    while True:
        size = sizes.of(largest_batch)
        try:
            with named_out_of_memory(f"one block and one example do not fit; {_LESS}", device):
                return streamed(size)
        except OutOfMemory as error:
            if not sizes.halve(size):
                raise
            release(error, device)
