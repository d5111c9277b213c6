"""How much memory the host has left for this process.

That is what the machine, the process's control groups and its own limits leave,
whichever is least; a process that takes more than a group has is killed, not refused.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

KIB = 1024
_UNLIMITED = 2**60  # kernels write "no limit" as a huge number
PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")
# Limit, use and reclaimable part, in files of either version of control groups.
_FILES = {
    1: (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}


def free_host_bytes(*, proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Say how much more host memory this process can get.

    Args:
        proc: Where the kernel tells about processes.
        groups: Where it tells about control groups.

    Returns:
        Bytes; ``None`` on systems other than Linux.
    """
    found: list[int] = []
    with suppress(OSError, KeyError, ValueError):
        found.append(_fields(proc / "meminfo")["MemAvailable"] * KIB)
    found.extend(_left_in_groups(proc, groups))
    found.extend(_left_to_process(proc / "self/status"))
    return max(0, min(found)) if found else None


def total_host_bytes(*, proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Say how much host memory this process may use in all.

    Args:
        proc: Where the kernel tells about processes.
        groups: Where it tells about control groups.

    Returns:
        Bytes of the machine, or of the process's control groups if that is less.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder, version in control_groups("memory", proc=proc, groups=groups):
        with suppress(OSError, ValueError):
            limit = _limit(folder / _FILES[version][0])
            if limit is not None:
                limits.append(limit)
    return min(limits)


def control_groups(
    controller: str, *, proc: Path = PROC, groups: Path = GROUPS
) -> Iterator[tuple[Path, int]]:
    """Find the control groups that this process is in, of either version.

    Args:
        controller: What they limit, such as ``memory`` or ``cpu``.
        proc: Where the kernel tells about processes.
        groups: Where it tells about control groups.

    Yields:
        The folder of each group, from the innermost to the outermost, and its version. In
        a container the inner ones may not exist; the outermost is its own.
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, version = groups, 2
        elif controller in controllers.split(","):
            root, version = groups / controller, 1
        else:
            continue
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            yield folder, version
            if folder == root:
                break


def return_freed_memory() -> None:
    """Give the system what this process has freed, where its C library can be told to (glibc).

    The heap keeps freed pieces for later; those of a block's activations are a few hundred
    megabytes that a tensor of another size cannot use.
    """
    with suppress(AttributeError, OSError, TypeError):  # another library, or Windows
        ctypes.CDLL(None).malloc_trim(0)


def _left_to_process(status: Path) -> Iterator[int]:
    """What the process's own limits leave it."""
    try:
        import resource

        used = _fields(status)
    except (ImportError, OSError, ValueError):
        return
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY and name in used:
            yield soft - used[name] * KIB


def _left_in_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What each control group that the process is in leaves it."""
    for folder, version in control_groups("memory", proc=proc, groups=groups):
        limit_file, used_file, cached = _FILES[version]
        with suppress(OSError, ValueError, KeyError):
            limit = _limit(folder / limit_file)
            if limit is not None:
                stat = _fields(folder / "memory.stat")
                reclaimable = sum(stat[name] for name in cached)
                yield limit - int((folder / used_file).read_text()) + reclaimable


def _limit(file: Path) -> int | None:
    """The bytes that a control group's file states; ``None`` where that is no limit."""
    text = file.read_text().strip()
    return int(text) if text != "max" and int(text) < _UNLIMITED else None


def _fields(file: Path) -> dict[str, int]:
    """The numbers of a file of lines ``name: number unit``."""
    rows = (line.replace(":", " ").split() for line in file.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
