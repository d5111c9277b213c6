"""How many threads a model's arithmetic gets, and that they do not spin while they wait.

Read by OpenMP when torch is loaded, so it is set in the environment of a process before that.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from fimlora.memory.host import GROUPS, PROC, control_groups


def thread_environment(n_threads: int, given: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment.

    Args:
        n_threads: Threads that the operator asks for; 0 for what the process may use.
        given: The environment as it is; what it says already stands, except that the
            operator's own number wins.
    """
    wanted = {"OMP_NUM_THREADS": str(n_threads or available_cores())}
    # A thread that spins on a core which another process could use slows both: measured ten
    # times on two busy cores.
    wanted["OMP_WAIT_POLICY"] = "PASSIVE"
    stands = {name for name in wanted if name in given}
    if n_threads:
        stands.discard("OMP_NUM_THREADS")
    return {name: value for name, value in wanted.items() if name not in stands}


def available_cores(*, proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Cores this process may use: of its affinity, or of its control groups if that is less."""
    try:
        cores = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not on Linux
        cores = float(os.cpu_count() or 1)
    return max(1, math.ceil(min([cores, *_quotas(proc, groups)])))


def _quotas(proc: Path, groups: Path) -> Iterator[float]:
    """Cores that the process's group, and each one above it, is given."""
    for folder, version in control_groups("cpu", proc=proc, groups=groups):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        found = [number for name in names for number in _read(folder / name)]
        if len(found) == 2 and min(found) > 0:  # -1: no limit
            yield found[0] / found[1]


def _read(path: Path) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in path.read_text().split())
    except (OSError, ValueError):  # not there, or "max": no limit
        return ()
