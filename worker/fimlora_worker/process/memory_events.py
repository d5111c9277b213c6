"""How often the kernel has killed something of ours for memory: why a child vanished."""

from pathlib import Path

from fimlora.memory.host import GROUPS, PROC, control_groups


def count_oom_kills(*, proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Kills for memory in this process's control group; ``None`` where nobody counts."""
    found = control_groups("memory", proc=proc, groups=groups)
    try:
        own = next(folder for folder, version in found if version == 2)
        events = (own / "memory.events").read_text()
        return int(dict(line.split() for line in events.splitlines())["oom_kill"])
    except (OSError, StopIteration, KeyError, ValueError):
        return None
