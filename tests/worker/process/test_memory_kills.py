"""Jobs that the kernel really kills for memory: a worker in a control group with a limit."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from support.executor_jobs import submit
from support.jobs import Jobs
from support.memory_groups import MemoryGroup, memory_group
from support.model_folders import make_decoder, make_deep
from support.valkey import running_valkey
from support.workers import WorkerHandle, running_worker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does"),
]
MIB = 1 << 20


@pytest.fixture(scope="module")
def group() -> Iterator[MemoryGroup]:
    with memory_group() as made:
        if made is None:
            pytest.skip("this user may make no control group to limit memory in")
        yield made


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    data_dir: Path = tmp_path_factory.mktemp("data")
    make_decoder(data_dir / "models" / "decoder")
    make_deep(data_dir / "models" / "deep")
    with running_valkey() as url, Redis.from_url(url) as redis:
        yield Jobs(redis, data_dir)


@pytest.fixture(scope="module")
def worker(
    group: MemoryGroup, jobs: Jobs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerHandle]:
    """A worker that has little more memory than it has used for a small job."""
    url = f"unix://{jobs.redis.connection_pool.connection_kwargs['path']}"
    log = tmp_path_factory.mktemp("log") / "worker.log"
    # So that weights which were freed are no room for others.
    options = {"MALLOC_MMAP_THRESHOLD_": str(2**17), "FIMLORA_TORCH_THREADS": "1"}
    with running_worker(url, jobs.data_dir, log, **options) as handle:
        group.take(handle.process.pid)
        jobs.wait_final(submit(jobs, "decoder", "text", "resident"))
        both = (handle.process.pid, handle.child_pid)
        group.limit(sum(own_bytes(pid) for pid in both) + 48 * MIB)
        yield handle


def own_bytes(pid: int) -> int:
    """Memory of a process that is in no file."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["RssAnon"].split()[0]) * 1024


def test_a_job_that_is_killed_asks_for_less_and_is_refused_where_nothing_less_is_left(
    jobs: Jobs, worker: WorkerHandle
):
    """Killed by the kernel, by its own account; refused by name before it is killed again."""
    job_id = submit(jobs, "deep", "text", "resident")
    killed = worker.child_pid

    record = jobs.wait_final(job_id)

    error = record.json_field("error")
    assert (record.attempt, record.memory_kills) == (2, ("resident 1",))
    assert worker.child_pid != killed
    assert (error["code"], error["retryable"]) == ("out_of_memory_host", True)
    assert "and nothing smaller is left" in error["detail"]
    assert "executor=auto" in error["detail"]
