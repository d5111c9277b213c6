"""How much memory the host has left for this process.

That is what the machine, the process's control groups and its own limits leave,
whichever is least; a process that takes more than a group has is killed, not refused.
"""

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_KIB = 1024
_UNLIMITED = 2**60  # kernels write "no limit" as a huge number
# Limit, use and reclaimable part, in files of either version of control groups.
_V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def free_host_bytes(
    *, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Say how much more host memory this process can get.

    Args:
        proc: Where the kernel tells about processes.
        groups: Where it tells about control groups.

    Returns:
        Bytes; ``None`` on systems other than Linux.
    """
    found: list[int] = []
    with suppress(OSError, KeyError, ValueError):
        found.append(_fields(proc / "meminfo")["MemAvailable"] * _KIB)
    found.extend(_left_in_groups(proc / "self/cgroup", groups))
    found.extend(_left_to_process(proc / "self/status"))
    return max(0, min(found)) if found else None


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
            yield soft - used[name] * _KIB


def _left_in_groups(membership: Path, root: Path) -> Iterator[int]:
    """What each control group that the process is in leaves it, up to the outermost."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield from _left_on_path(root, path, _V2)
        elif "memory" in controllers.split(","):
            yield from _left_on_path(root / "memory", path, _V1)


def _left_on_path(
    root: Path, path: str, files: tuple[str, str, tuple[str, ...]]
) -> Iterator[int]:
    inner = root / path.lstrip("/")  # in a container it may not exist, the root does
    for folder in (inner, *inner.parents):
        with suppress(OSError, ValueError, KeyError):
            limit = (folder / files[0]).read_text().strip()
            if limit != "max" and int(limit) < _UNLIMITED:
                stat = _fields(folder / "memory.stat")
                cached = sum(stat[name] for name in files[2])
                yield int(limit) - int((folder / files[1]).read_text()) + cached
        if folder == root:
            return


def _fields(file: Path) -> dict[str, int]:
    """The numbers of a file of lines ``name: number unit``."""
    rows = (line.replace(":", " ").split() for line in file.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
