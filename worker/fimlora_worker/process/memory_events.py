"""How often the kernel has killed something of ours for memory: why a child vanished."""

from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def count_oom_kills(
    *, root: Path = CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Kills for memory in this process's control group; ``None`` where nobody counts."""
    try:
        # Version 2 has one line, "0::/path"; in a container the path is "/".
        path = membership.read_text().splitlines()[-1].split(":", 2)[2]
        events = (root / path.lstrip("/") / "memory.events").read_text()
        return int(dict(line.split() for line in events.splitlines())["oom_kill"])
    except (OSError, IndexError, KeyError, ValueError):
        return None
