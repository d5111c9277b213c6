"""What a piece of work costs a process: seconds, and memory beyond what it had."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass
class Cost:
    """What it has cost.

    Attributes:
        seconds: By the clock on the wall.
        growth: Bytes at the highest, beyond what there were before.
    """

    seconds: float = 0.0
    growth: int = 0


@contextmanager
def watched(process: int | str = "self") -> Iterator[Cost]:
    """Watch what the block costs; the figures are there when it has ended.

    Args:
        process: Whose memory is watched.
    """
    cost, folder = Cost(), PROC / str(process)
    with suppress(OSError):
        (folder / "clear_refs").write_text("5")  # the highest so far is what there is now
    before, began = _bytes(folder, "VmRSS"), time.monotonic()
    try:
        yield cost
    finally:
        cost.seconds = time.monotonic() - began
        cost.growth = max(0, _bytes(folder, "VmHWM") - before)


def _bytes(folder: Path, field: str) -> int:
    lines = (folder / "status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[field].split()[0]) * 1024
