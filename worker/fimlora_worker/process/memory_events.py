"""How often the kernel has killed something for memory: why a child vanished."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fimlora.memory.host import GROUPS, PROC, control_groups

# Where either version of control groups counts.
EVENTS = {1: "memory.oom_control", 2: "memory.events"}
COUNT = "oom_kill"


@dataclass(frozen=True, slots=True)
class OomKills:
    """Kills for memory so far.

    Attributes:
        group: In this process's control group; ``None`` where nobody counts.
        host: On the whole machine, whoever was hit; ``None`` where nobody counts.
    """

    group: int | None = None
    host: int | None = None

    def explain(self, before: "OomKills") -> bool:
        """Whether a process of our group that was killed since then was killed for memory.

        The machine's count says so of a process that nobody else has killed; where the group
        has a count of its own, that alone is asked.
        """
        if self.group is not None and before.group is not None:
            return self.group > before.group
        return self.host is not None and before.host is not None and self.host > before.host


def count_oom_kills(*, proc: Path = PROC, groups: Path = GROUPS) -> OomKills:
    """Count the kills for memory in this process's control group, and on the machine."""
    return OomKills(
        group=next(_in_groups(proc, groups), None),
        host=_count(proc / "vmstat"),
    )


def _in_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What the group counts that is the innermost to be seen from here."""
    for folder, version in control_groups("memory", proc=proc, groups=groups):
        found = _count(folder / EVENTS[version])
        if found is not None:
            yield found


def _count(file: Path) -> int | None:
    with suppress(OSError, KeyError, ValueError):
        return int(dict(line.split() for line in file.read_text().splitlines())[COUNT])
    return None
