"""Jobs under a memory limit; `test_memory_limits` runs them in a process of their own.

A process that has run other tests holds memory that is free again, which the limit does not
count: there a model fits that should not. These two leave none behind, as their weights are
mapped and unmapped one by one.
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.executor_jobs import ended, n_loads, submit
from support.jobs import Jobs
from support.model_folders import make_deep


@contextmanager
def memory_for(n_bytes: int) -> Iterator[None]:
    """Allow this process so many bytes more than it has."""
    lines = Path("/proc/self/status").read_text().splitlines()
    used = int(dict(line.split(":", 1) for line in lines)["VmData"].split()[0]) * 1024
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.fixture
def deep(jobs: Jobs, model_folders: Path, tmp_path: Path) -> int:
    """Register a model of many small blocks, ``deep``; answers its size."""
    (jobs.data_dir / "models").unlink()
    (jobs.data_dir / "models").mkdir()
    (jobs.data_dir / "models" / "decoder").symlink_to(model_folders / "decoder")
    return make_deep(jobs.data_dir / "models" / "deep")


def prepare(jobs: Jobs, run_queue) -> None:
    """Let this process load whatever torch loads on first use: it is no weight."""
    for executor in ("resident", "streamed"):
        submit(jobs, "decoder", "text", executor)
    run_queue()


def test_a_model_that_does_not_fit_is_streamed_unless_it_must_not_be(
    jobs: Jobs, run_queue, deep
):
    """Under a limit of half its weights; forced to be resident, the job says what it lacked."""
    prepare(jobs, run_queue)
    forced = submit(jobs, "deep", "text", "resident")
    chosen = submit(jobs, "deep", "text", "auto")

    with memory_for(deep // 2):
        run_queue()

    error = ended(jobs, forced).error
    assert error.code == "out_of_memory_host"
    assert error.detail.startswith("the model does not fit; stream it, ")
    assert "was asked for when " in error.detail
    assert ended(jobs, chosen).error is None
    assert ended(jobs, chosen).result.execution.executor == "streamed"
    assert len(process_for(Settings()).models) == 0  # the small one has made room


def test_a_model_that_only_seemed_to_fit_is_streamed_after_all(jobs: Jobs, run_queue, deep):
    """Its weights fit, but not beside the file that they are loaded from."""
    prepare(jobs, run_queue)
    loads = n_loads()
    job_id = submit(jobs, "deep", "text", "auto")

    with memory_for(deep * 3 // 2):
        run_queue()

    assert ended(jobs, job_id).error is None
    assert ended(jobs, job_id).result.execution.executor == "streamed"
    assert n_loads() == loads + 1  # it was tried
    assert process_for(Settings()).models.largest_bytes < deep
