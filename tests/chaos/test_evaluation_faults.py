"""Evaluations on several real workers: runs are shared, and a lost worker costs the one it was in."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from fimlora_jobs.record import JobRecord
from fimlora_jobs.runs import Runs
from support.jobs import Jobs
from support.workers import WorkerHandle, running_worker, wait_dead

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("evaluation_faults")]


@pytest.fixture(scope="module")
def pair(
    server: str, jobs: Jobs, worker: WorkerHandle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WorkerHandle, WorkerHandle]]:
    """Two workers over one queue."""
    log = tmp_path_factory.mktemp("second") / "worker.log"
    with running_worker(server, jobs.data_dir, log) as second:
        yield worker, second


def n_done(jobs: Jobs, job_id: str) -> int:
    return len(Runs(jobs.store, job_id).results())


def n_kept(job_id: str, *workers: WorkerHandle) -> list[int]:
    """How many runs each worker has trained to the end."""
    return [worker.count("run.kept", job_id=job_id) for worker in workers]


def test_two_workers_share_the_runs(jobs: Jobs, pair):
    """Both train, no run twice, and hands leave nothing behind."""
    job_id = jobs.submit_evaluation()
    record = jobs.wait_final(job_id, timeout_s=120)

    assert record.status == "succeeded", record.fields
    n_runs = record.to_job().result.n_runs
    shares = n_kept(job_id, *pair)
    assert sum(shares) == n_runs == n_done(jobs, job_id)
    assert min(shares) > 0
    assert Runs(jobs.store, job_id).claimed() == {}
    assert not list((jobs.data_dir / "tmp").glob("job_*-hand_*"))


def test_a_killed_child_costs_the_run_it_was_in(jobs: Jobs, pair):
    """The next attempt starts at once from what was finished; no run is kept twice."""
    job_id = jobs.submit_evaluation(steps=8)
    jobs.wait(job_id, lambda _: n_done(jobs, job_id) >= 3)
    [leader] = [w for w in pair if w.has_logged("attempt.started", job_id=job_id, attempt=1)]

    os.kill(leader.child_pid, signal.SIGKILL)
    record = jobs.wait_final(job_id, timeout_s=120)

    assert (record.status, record.attempt) == ("succeeded", 2)
    n_runs = record.to_job().result.n_runs
    assert n_done(jobs, job_id) == n_runs
    # One may have been kept and not be logged: there the child was killed.
    assert n_runs - 1 <= sum(n_kept(job_id, *pair)) <= n_runs


def test_it_is_canceled_wherever_it_is_trained(jobs: Jobs, pair):
    """Leader and hand stop within a few seconds, and both take other jobs."""
    job_id = jobs.submit_evaluation(steps=20_000)
    jobs.wait(job_id, lambda r: n_steps(r) > 0 and len(held(jobs, job_id)) == 2)
    time.sleep(2)  # the hand is past its preparations, too
    children = [worker.child_pid for worker in pair]

    jobs.store.request_cancel(job_id)
    record = jobs.wait_final(job_id, timeout_s=20)
    after = [jobs.submit(calibration={"n_batches": 2, "seed": n}) for n in (1, 2)]

    assert record.status == "canceled"
    assert [jobs.wait_final(id_).status for id_ in after] == ["succeeded"] * 2
    # They ended by themselves: nobody had to be killed.
    assert [worker.child_pid for worker in pair] == children


def test_a_hand_that_is_killed_holds_nothing_up(jobs: Jobs, pair):
    """Its run is taken by the leader, at once as its parent lives."""
    job_id = jobs.submit_evaluation(steps=8)
    jobs.wait(job_id, lambda _: any("hand" in h for h in held(jobs, job_id)))
    [leader] = [w for w in pair if w.has_logged("attempt.started", job_id=job_id, attempt=1)]
    [hand] = [worker for worker in pair if worker is not leader]

    os.kill(hand.child_pid, signal.SIGKILL)
    record = jobs.wait_final(job_id, timeout_s=120)

    assert (record.status, record.attempt, record.failures) == ("succeeded", 1, 0)
    assert n_done(jobs, job_id) == record.to_job().result.n_runs


def test_a_killed_worker_costs_the_run_it_was_in(jobs: Jobs, pair):
    """Parent and child gone at once, the leader: another worker goes on within 30 s.

    Runs that were finished are kept, and the one it was in is trained by another.
    """
    job_id = jobs.submit_evaluation(steps=8)
    jobs.wait(job_id, lambda _: n_done(jobs, job_id) >= 3)
    [leader] = [w for w in pair if w.has_logged("attempt.started", job_id=job_id, attempt=1)]
    [other] = [worker for worker in pair if worker is not leader]
    child = leader.child_pid

    leader.signal(signal.SIGKILL)
    killed_at_ms = jobs.store.now_ms()
    wait_dead(child, timeout_s=2)
    finished = Runs(jobs.store, job_id).results()
    record = jobs.wait_final(job_id, timeout_s=180)

    assert (record.status, record.attempt) == ("succeeded", 2)
    taken_at_ms = next(
        int(event.id.partition("-")[0])
        for event in jobs.store.events(job_id, limit=5000)
        if (event.attempt, event.status) == (2, "running")
    )
    assert taken_at_ms - killed_at_ms < 30_000
    results = Runs(jobs.store, job_id).results()
    assert {run: results[run] for run in finished} == finished
    assert len(results) == record.to_job().result.n_runs
    assert other.count("run.kept", job_id=job_id) < len(results)


def n_steps(record: JobRecord) -> int:
    """Steps of the leader's run."""
    return int(((record.json_field("progress") or {}).get("runs") or {}).get("step") or 0)


def held(jobs: Jobs, job_id: str) -> list[str]:
    return list(Runs(jobs.store, job_id).claimed().values())
