"""Hold a process to a part of a core, as a container's `--cpus` does (Linux, as root).

Workers on one machine take caches, memory and each other's turns from one another, so what two of
them do at once says more of the machine than of the work. Held to so little that all of them fit,
each is a machine of its own, only a slower one. They go before other work, which gets what is left.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PERIOD_US = 10_000  # short, so that waiting for the next one is noise beside a batch


@contextlib.contextmanager
def held_to(cpus: float, pids: Iterable[int]) -> Iterator[None]:
    """Hold processes, and all that they start from now on, together to some part of a core.

    Raises:
        OSError: There are no control groups here that may be written.
    """
    group, limits = _group(f"fimlora-benchmark-{os.getpid()}-{time.monotonic_ns()}", cpus)
    group.mkdir()
    try:
        for name, value in limits.items():
            (group / name).write_text(value)
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        _release(group)


def _group(name: str, cpus: float) -> tuple[Path, dict[str, str]]:
    quota = str(round(cpus * PERIOD_US))
    if (CGROUPS / "cgroup.controllers").exists():  # version 2
        return CGROUPS / name, {"cpu.max": f"{quota} {PERIOD_US}", "cpu.weight": "10000"}
    return CGROUPS / "cpu" / name, {
        "cpu.cfs_period_us": str(PERIOD_US),
        "cpu.cfs_quota_us": quota,
        "cpu.shares": "262144",
    }


def _release(group: Path) -> None:
    """Let go of what is still alive; a group that has processes cannot be removed."""
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            (group.parent / "cgroup.procs").write_text(pid)
    group.rmdir()
