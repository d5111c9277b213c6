"""One job shared by real workers: killed, canceled, and with a store that goes away."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fimlora_contract.jobs import JobStatus
from fimlora_jobs.runs import Runs
from support.jobs import Jobs, write_jsonl
from support.workers import WorkerHandle, running_worker, wait_dead

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker_processes")]

N_BATCHES = 1500


@pytest.fixture
def several(
    jobs: Jobs, valkey_url: str, tmp_path: Path
) -> Callable[[int], contextlib.AbstractContextManager[list[WorkerHandle]]]:
    """Start some workers, and wait until each is known to the others."""

    @contextlib.contextmanager
    def start(n: int) -> Iterator[list[WorkerHandle]]:
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(
                    running_worker(valkey_url, jobs.data_dir, tmp_path / f"log-{number}")
                )
                for number in range(n)
            ]
            deadline = time.monotonic() + 90
            while jobs.redis.hlen("fimlora:workers") < n:
                assert time.monotonic() < deadline, [w.log.read_text()[-500:] for w in workers]
                time.sleep(0.1)
            yield workers

    return start


def submit(jobs: Jobs, *, shards: int | str, n_batches: int = N_BATCHES) -> str:
    name = "many.jsonl"
    if not (jobs.data_dir / "datasets" / name).exists():
        rows = [{"text": f"w{n % 50} w{n % 7} w{n % 11}"} for n in range(N_BATCHES)]
        write_jsonl(jobs.data_dir / "datasets" / name, rows)
    return jobs.submit(
        model="decoder",
        dataset={"source": "local", "name": name},
        calibration={"n_batches": n_batches, "batch_size": 1, "shards": shards},
    )


def wait_for_helper(jobs: Jobs, job_id: str, workers: list[WorkerHandle]) -> WorkerHandle:
    """The worker that has lent a hand and is some batches into a shard."""
    deadline = time.monotonic() + 120
    while True:
        runs = Runs(jobs.store, job_id, Runs(jobs.store, job_id).prepared_on() or "")
        helping = [holder for holder in runs.claimed().values() if "hand_" in holder]
        if helping and any(runs.noted().values()):
            leader = jobs.get(job_id).fields["worker"]
            return next(w for w in workers if not leader.endswith(f"-{w.child_pid}"))
        assert time.monotonic() < deadline, jobs.get(job_id).fields
        time.sleep(0.05)


def digest_of(jobs: Jobs, job_id: str) -> str:
    record = jobs.wait_final(job_id, timeout_s=300)
    assert record.status is JobStatus.SUCCEEDED, record.to_job().error
    return record.json_field("result")["digest"]


def kept(workers: list[WorkerHandle], job_id: str) -> list[str]:
    """Shards that were kept, by whomever."""
    return sorted(
        line["shard"] for worker in workers for line in worker.lines("shard.kept")
        if line["job_id"] == job_id
    )  # fmt: skip


def test_a_worker_killed_in_its_shard_costs_that_shard_alone(jobs: Jobs, several):
    """Another goes on with it; the result is that of one worker, and no attempt was lost."""
    with several(2) as workers:
        shared = submit(jobs, shards=2)
        helper = wait_for_helper(jobs, shared, workers)
        child = helper.child_pid
        os.kill(child, signal.SIGKILL)
        wait_dead(child)
        found = digest_of(jobs, shared)
        whole = submit(jobs, shards=1)
        assert digest_of(jobs, whole) == found

    assert kept(workers, shared) == ["0-750", "750-1500"]
    record = jobs.get(shared)
    assert (record.attempt, record.failures) == (1, 0)
    assert record.to_job().result.execution.n_shards == 2


def test_one_command_starts_workers_that_share_a_job(jobs: Jobs, valkey_url, tmp_path):
    """Each with its share of the cores; a signal ends all of them in good order."""
    with running_worker(
        valkey_url, jobs.data_dir, tmp_path / "log", "--workers", "2"
    ) as several:
        deadline = time.monotonic() + 90
        while jobs.redis.hlen("fimlora:workers") < 2:
            assert time.monotonic() < deadline, several.log.read_text()[-2000:]
            time.sleep(0.1)
        shared = submit(jobs, shards="auto", n_batches=400)
        assert digest_of(jobs, shared)
        workers = several.child_pids()
        several.signal(signal.SIGTERM)
        assert several.wait(60) == 0

    assert jobs.get(shared).to_job().result.execution.n_shards == 2
    assert len(workers) == 2
    for pid in workers:
        wait_dead(pid)
    assert jobs.redis.hlen("fimlora:workers") == 0  # they have left, and were not killed


def test_four_workers_share_a_job_and_its_end_stops_all(jobs: Jobs, several):
    """Each takes a shard; progress counts over all; a cancel leaves nobody at work."""
    with several(4) as workers:
        shared = submit(jobs, shards=4)
        record = jobs.wait(
            shared,
            lambda r: (
                ((r.json_field("progress") or {}).get("shards") or {}).get("at_once", 0) >= 3
            ),
            timeout_s=180,
        )
        figures = record.json_field("progress")
        assert figures["n_batches"] == N_BATCHES
        assert figures["shards"]["n_shards"] == 4
        jobs.store.request_cancel(shared)
        assert jobs.wait_final(shared).status is JobStatus.CANCELED
        runs = Runs(jobs.store, shared, Runs(jobs.store, shared).prepared_on() or "")
        deadline = time.monotonic() + 60
        while runs.claimed():
            assert time.monotonic() < deadline, runs.claimed()
            time.sleep(0.1)

        short = submit(jobs, shards=4, n_batches=8)
        assert digest_of(jobs, short)
        assert len(kept(workers, short)) == 4
