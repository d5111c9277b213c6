"""What a process may still take, as the kernel's own files say."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fimlora.memory.host import free_host_bytes, total_host_bytes

GIB = 2**30
MEMINFO = "MemTotal:  16777216 kB\nMemFree:  1048576 kB\nMemAvailable:  8388608 kB\n"


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 8 GiB left, whose process is in no group."""
    write(tmp_path / "proc/self", cgroup="", status="Name:\tpython\nVmSize:\t 100 kB\n")
    return write(tmp_path / "proc", meminfo=MEMINFO)


def test_the_machine_alone(proc, tmp_path):
    """Without groups and limits it is what the kernel calls available."""
    assert free_host_bytes(proc=proc, groups=tmp_path / "none") == 8 * GIB


@pytest.mark.parametrize("path", ["/jobs/one", "/"])
def test_a_group_of_version_2_and_those_around_it(proc, tmp_path, path):
    """The tightest counts; files in its cache can be dropped; "max" is no limit."""
    write(proc / "self", cgroup=f"0::{path}\n")
    root = tmp_path / "groups"
    stat = f"anon 5\ninactive_file {GIB // 2}\nactive_file {GIB // 2}\n"
    outer = {"memory__max": str(4 * GIB), "memory__current": str(2 * GIB), "memory__stat": stat}
    write(root / path.lstrip("/"), memory__max="max", memory__current="7", memory__stat=stat)
    write(root, **outer)

    assert free_host_bytes(proc=proc, groups=root) == 3 * GIB


def test_a_group_of_version_1(proc, tmp_path):
    """Its files have other names; a container sees its own group at the root."""
    write(proc / "self", cgroup="4:cpu:/x\n3:blkio,memory:/docker/123\n0::/\n")
    root = tmp_path / "groups"
    write(
        root / "memory",
        memory__limit_in_bytes=str(2 * GIB),
        memory__usage_in_bytes=str(3 * GIB),
        memory__stat=f"total_inactive_file {GIB}\ntotal_active_file {GIB // 2}\n",
    )

    assert free_host_bytes(proc=proc, groups=root) == GIB // 2


def test_a_group_that_is_full_leaves_nothing(proc, tmp_path):
    """Never less than nothing."""
    write(proc / "self", cgroup="0::/\n")
    stat = "inactive_file 0\nactive_file 0\n"
    root = write(tmp_path / "g", memory__max="1000", memory__current="2000", memory__stat=stat)

    assert free_host_bytes(proc=proc, groups=root) == 0


def test_a_system_that_does_not_say(tmp_path):
    """Nobody knows is not the same as nothing."""
    assert free_host_bytes(proc=tmp_path, groups=tmp_path) is None


MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, MACHINE),
        ({"memory.max": "max\n"}, MACHINE),
        ({"memory.max": "1048576\n"}, 1 << 20),
        ({"a/memory.max": "1048576\n", "memory.max": "max\n"}, 1 << 20),
        ({"a/b/memory.max": "max\n", "a/memory.max": "1048576\n"}, 1 << 20),
        ({"memory/memory.limit_in_bytes": "2097152\n"}, 2 << 20),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, MACHINE),
    ],
    ids=[
        "no group", "no limit", "version 2", "a group within", "a group above",
        "version 1", "version 1 without a limit",
    ],
)  # fmt: skip
def test_a_container_has_the_memory_of_its_limit(proc, tmp_path, files, expected):
    """The machine's memory, or less."""
    write(proc / "self", cgroup="4:memory:/\n0::/a/b\n")
    for name, text in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    assert total_host_bytes(proc=proc, groups=tmp_path / "groups") == expected


FREED = """
from fimlora.memory.host import return_freed_memory
import ctypes, sys
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

pieces = [libc.malloc(100_000) for _ in range(1000)]
for piece in pieces:
    ctypes.memset(piece, 1, 100_000)
for piece in pieces[:-1]:  # the last one keeps the heap from shrinking by itself
    libc.free(piece)
before = resident()
return_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at memory as Linux shows it")
def test_what_was_freed_goes_back_to_the_system():
    """A hundred megabytes below a piece that is still in use; nothing where libc cannot."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("another C library than glibc")
    env = {"PYTHONPATH": str(Path(__file__).parents[3] / "worker"), "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", FREED], env=env, capture_output=True, text=True, check=True
    )

    assert int(run.stdout) > 90_000_000


LIMITED = """
import resource
from pathlib import Path
from fimlora.memory.host import free_host_bytes
for limit, field in (resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"):
    before = free_host_bytes()
    lines = dict(l.split(":", 1) for l in Path("/proc/self/status").read_text().splitlines())
    used = int(lines[field].split()[0]) * 1024
    resource.setrlimit(limit, (used + 2**29, resource.RLIM_INFINITY))
    assert free_host_bytes() <= 2**29 < before, (free_host_bytes(), before)
    resource.setrlimit(limit, (resource.RLIM_INFINITY,) * 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_limits_of_the_process_itself():
    """What ``ulimit`` leaves is less than what the machine has."""
    environment = {"PYTHONPATH": str(Path(__file__).parents[3] / "worker")}

    subprocess.run([sys.executable, "-c", LIMITED], env=environment, check=True)
