"""Control groups whose memory a test limits, so that the kernel really kills in them."""

import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fimlora.memory.host import control_groups

_LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}


@dataclass(frozen=True)
class MemoryGroup:
    """A group inside this process's own.

    Attributes:
        folder: Where the kernel has it.
        version: Of control groups.
    """

    folder: Path
    version: int

    def take(self, pid: int) -> None:
        """Put a process in; children that it has from now on are in it, too."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def limit(self, n_bytes: int) -> None:
        (self.folder / _LIMIT[self.version]).write_text(str(n_bytes))


@contextlib.contextmanager
def memory_group() -> Iterator[MemoryGroup | None]:
    """Make a group, and remove it once it is empty; ``None`` where this user may not."""
    group = _make()
    try:
        yield group
    finally:
        if group:
            _remove(group.folder)


def _make() -> MemoryGroup | None:
    for parent, version in control_groups("memory"):
        folder = parent / f"fimlora-{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / _LIMIT[version]).exists():
                return MemoryGroup(folder, version)
            folder.rmdir()  # of a version that limits something else here
    return None


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return folder.rmdir()
        except OSError:  # processes that were killed take a moment to go
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
