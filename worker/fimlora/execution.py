"""How a measurement was carried out: facts about a run, not about what it measured.

Statistics are the same whatever executor and micro-batch gave them, so none of this is
saved with them, or compared, or part of a rank map.
"""

from dataclasses import dataclass
from enum import StrEnum


class Executor(StrEnum):
    """Where a model's weights are while it is measured."""

    AUTO = "auto"
    """Resident if the model fits, else streamed."""
    RESIDENT = "resident"
    """All in device memory."""
    STREAMED = "streamed"
    """On disk, but for the blocks at work; see `fimlora.streaming`."""


@dataclass(frozen=True)
class Execution:
    """One run.

    Attributes:
        executor: ``resident`` or ``streamed``.
        micro_batch_size: Examples that went through the model at once, after all halvings.
        peak_memory_bytes: The most memory in use: on CUDA what torch had allocated since its
            counter was last reset; on a CPU the process's largest resident size so far,
            which also counts what ran before. ``None`` where the system does not say.
    """

    executor: Executor
    micro_batch_size: int
    peak_memory_bytes: int | None
