"""What a running stack takes, looked at between jobs: memory, handles, threads, keys, disk."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from redis import Redis

from fimlora_client import Client

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Look:
    """The stack after some jobs; memory in bytes, of three processes each.

    Attributes:
        api, parent, child: Resident memory.
        api_handles, parent_handles, child_handles: Open files, sockets and pipes.
        api_threads, parent_threads, child_threads: Threads.
        keys: Keys of ours in Redis that do not go by themselves.
        rq_keys: Keys of RQ, which keeps what has ended for an hour.
        disk: Bytes of the data folder, without logs and the store's own files.
        files: Files there.
    """

    jobs: int
    api: int
    parent: int
    child: int
    api_handles: int
    parent_handles: int
    child_handles: int
    api_threads: int
    parent_threads: int
    child_threads: int
    keys: int
    rq_keys: int
    disk: int
    files: int


# How much more than after the warm-up each may be in the end. Python gives memory back in pieces;
# over 800 jobs these are 30 KiB a job in the API and 40 KiB in the child, over ten jobs they say
# little of memory, and all of handles, threads and keys. The API keeps answers of late, 10 KiB a job
# of this size and 64 MiB at most.
ALLOWED = {
    "api": 24 * MIB, "parent": 12 * MIB, "child": 32 * MIB,
    "api_handles": 4, "parent_handles": 2, "child_handles": 2,
    "api_threads": 4, "parent_threads": 1, "child_threads": 2,
    "keys": 3, "disk": MIB, "files": 4,
}  # fmt: skip
RQ_KEYS_PER_JOB = 4


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that are looked at."""

    api: int
    parent: int

    @property
    def child(self) -> int:
        """The warm child of the worker."""
        [child] = _children(self.parent)
        return child


def processes_of(up_pid: int) -> Processes:
    """API and worker below a running ``fimlora up``."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in _children(up_pid)}
    [api] = [pid for pid, line in lines.items() if "fimlora_service" in line]
    [parent] = [pid for pid, line in lines.items() if "fimlora_worker" in line]
    return Processes(api, parent)


def small_requests(dataset: str) -> list[dict]:
    """What is asked for in turn: a few results, so that the disk has seen all of them soon."""
    calibration = {"n_batches": 2, "batch_size": 4}
    known = {"base_model": "local:tiny", "dataset": dataset, "calibration": calibration}
    return [known | {"budget": budget} for budget in (2, 3, 4, 5)]


def soak(
    client: Client,
    redis: Redis,
    data_dir: Path,
    processes: Processes,
    *,
    n_jobs: int,
    every: int,
    requests: Sequence[dict],
) -> Iterator[Look]:
    """Run jobs one after the other, delete each, and look after every few."""
    for n in range(1, n_jobs + 1):
        job = client.calibrate(**requests[n % len(requests)], force=True)
        job.wait(timeout=300, poll_every=0.05)
        job.delete()
        if n % every == 0 or n == n_jobs:
            yield look(redis, data_dir, processes, jobs=n)


def look(redis: Redis, data_dir: Path, processes: Processes, *, jobs: int) -> Look:
    """The stack as it is now."""
    pids = {name: getattr(processes, name) for name in ("api", "parent", "child")}
    keys = [key.decode() for key in redis.scan_iter(count=1000)]
    ours = [key for key in keys if not key.startswith("rq:")]
    sizes = list(_sizes(data_dir))
    return Look(
        jobs=jobs,
        **{name: _memory(pid) for name, pid in pids.items()},
        **{f"{name}_handles": _n_in(pid, "fd") for name, pid in pids.items()},
        **{f"{name}_threads": _n_in(pid, "task") for name, pid in pids.items()},
        keys=sum(redis.ttl(key) == -1 for key in ours),
        rq_keys=len(keys) - len(ours),
        disk=sum(sizes),
        files=len(sizes),
    )


def growth_beyond(looks: Sequence[Look], *, warm_up: int) -> list[str]:
    """What has grown further than allowed since the first look after the warm-up."""
    warm = [found for found in looks if found.jobs >= warm_up]
    first, last = warm[0], warm[-1]
    grown = [
        f"{name} grew from {getattr(first, name):,} to {getattr(last, name):,} "
        f"in {last.jobs - first.jobs} jobs; allowed are {allowed:,} more"
        for name, allowed in ALLOWED.items()
        if getattr(last, name) - getattr(first, name) > allowed
    ]
    if last.rq_keys > RQ_KEYS_PER_JOB * last.jobs + 50:
        grown.append(f"rq_keys are {last.rq_keys:,} after {last.jobs:,} jobs")
    return grown


def table_row(found: Look) -> str:
    """A look as a line of a table."""
    cells = [getattr(found, field.name) for field in fields(found)]
    shown = [f"{cell / MIB:.1f}M" if cell > 10 * MIB else f"{cell:,}" for cell in cells]
    return " ".join(f"{text:>9}" for text in shown)


def table_head() -> str:
    """The names of the columns, short enough for them."""
    short = {"handles": "fds", "threads": "thr", "parent": "par"}
    names = []
    for field in fields(Look):
        name = field.name
        for long, word in short.items():
            name = name.replace(long, word)
        names.append(f"{name:>9}")
    return " ".join(names)


def _children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _n_in(pid: int, folder: str) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/{folder}").iterdir())


def _memory(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _sizes(data_dir: Path) -> Iterator[int]:
    for path in data_dir.rglob("*"):
        if path.relative_to(data_dir).parts[0] not in {"logs", "valkey"} and path.is_file():
            yield path.stat().st_size
