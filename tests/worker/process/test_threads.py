"""Threads of a model: as many as the process has cores, and asleep while they wait."""

import os

import pytest

from fimlora_worker.process.threads import available_cores, thread_environment


@pytest.fixture
def proc(tmp_path):
    """A process in two groups within the outermost ones, of either version."""
    membership = tmp_path / "proc" / "self" / "cgroup"
    membership.parent.mkdir(parents=True)
    membership.write_text("4:cpu,cpuacct:/\n0::/a/b\n")
    return tmp_path / "proc"


def test_a_process_without_limits_has_the_cores_of_its_affinity(tmp_path, proc):
    """A group without a quota says max."""
    (tmp_path / "cpu.max").write_text("max 100000")

    found = available_cores(groups=tmp_path, proc=proc)

    assert found == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "files",
    [
        {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"},
        {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"},
        {"cpu.max": "50000 100000"},
    ],
    ids=["version_1", "a_group_above", "the_root_of_a_container"],
)
def test_a_quota_of_a_control_group_counts(files, tmp_path, proc):
    """Half a core is rounded up to one, whatever group has it."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert available_cores(groups=tmp_path, proc=proc) == 1


def test_a_quota_that_is_off_is_no_quota(tmp_path, proc):
    """Version 1 writes -1."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")

    found = available_cores(groups=tmp_path, proc=proc)

    assert found == len(os.sched_getaffinity(0))


def test_what_the_environment_says_stands():
    """Except that the setting of the worker is the last word on threads."""
    given = {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"}

    assert thread_environment(0, given) == {}
    assert thread_environment(2, given) == {"OMP_NUM_THREADS": "2"}
    assert thread_environment(2, {}) == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    assert int(thread_environment(0, {})["OMP_NUM_THREADS"]) >= 1
