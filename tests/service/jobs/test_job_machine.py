"""Whatever clients, workers, the clock and the reaper do in turn, a job is where a small model says.

The real app on a real Valkey; workers are played through the store. The model is what the service
is to do in at most fifty lines, and knows nothing of how.
"""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from fimlora_contract.jobs import JobError, Progress, Stage
from fimlora_jobs.attempts import MAX_ATTEMPTS, QUEUE_NAME, rq_job_id
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.reaper import requeue_orphans
from fimlora_jobs.retention import forget_old_jobs
from fimlora_jobs.store import JobStore, StaleAttempt
from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from support.service import ROWS, commit_result, make_model
from support.testclient import TestClient
from support.valkey import running_valkey

FINAL = {"succeeded", "failed", "canceled"}


@dataclass
class Job:
    body: int
    status: str = "queued"
    attempt: int = 1
    losses: int = 0
    n_requests: int = 1
    is_listed: bool = True  # in the queue that workers pop from
    is_noted: bool = False  # the reaper has not found it there
    is_old: bool = False  # nothing has touched it for longer than a lease

    def become(self, status: str) -> None:
        self.status, self.is_old = status, False

    def lose(self) -> None:
        self.losses += 1
        if self.status == "canceling":
            self.become("canceled")
        elif self.losses >= MAX_ATTEMPTS:
            self.become("failed")
        else:
            self.become("queued")
            self.attempt, self.is_listed, self.is_noted = self.attempt + 1, True, False

    def reap(self) -> None:
        if self.status in {"running", "canceling"} and self.is_old:
            self.lose()
        elif self.status == "queued" and self.is_listed == self.is_noted:
            self.is_noted, self.is_old = not self.is_listed, False
        elif self.status == "queued" and not self.is_listed and self.is_old:
            self.lose()


@dataclass
class Model:
    jobs: dict[str, Job] = field(default_factory=dict)
    keys: dict[str, tuple[int, str]] = field(default_factory=dict)
    newest: dict[int, str] = field(default_factory=dict)  # by body, as are results
    results: dict[int, str] = field(default_factory=dict)

    def drop(self, job_id: str) -> None:
        del self.jobs[job_id]
        self.keys = {key: known for key, known in self.keys.items() if known[1] != job_id}

    def find(self, body: int, *statuses: str) -> str:
        known = [self.newest.get(body, "")]
        if "succeeded" in statuses:
            known.insert(0, self.results.get(body, ""))
        fits = (id_ for id_ in known if id_ in self.jobs and self.jobs[id_].status in statuses)
        return next(fits, "")


class Machine(RuleBasedStateMachine):
    """What can happen, done to the service and to the model."""

    http: TestClient
    redis: Redis
    data_dir: Path

    def __init__(self) -> None:
        super().__init__()
        self.redis.flushall()
        self.store, self.transport = JobStore(self.redis), RqTransport(self.redis)
        self.model = Model()
        self.ids_so_far: set[str] = set()

    def pick(self, n: int) -> tuple[str, Job]:
        ids = list(self.model.jobs)  # most goes on where something has begun
        job_id = ids[-1 - n % len(ids)]
        return job_id, self.model.jobs[job_id]

    def has_jobs(self) -> bool:
        return bool(self.model.jobs)

    def accept(self, body: int, job_id: str) -> None:
        assert job_id not in self.ids_so_far  # its attempts would not be the first
        self.ids_so_far.add(job_id)
        self.model.jobs[job_id], self.model.newest[body] = Job(body), job_id

    @rule(body=st.sampled_from([8, 8, 9]), key=st.sampled_from(["", "a", "b"]))
    def submit(self, body: int, key: str) -> None:
        given = {"base_model": "local:tiny", "budget": body}
        given["dataset"] = {"source": "inline", "rows": ROWS}
        headers = {"Idempotency-Key": key} if key else {}
        answer = self.http.post("/calibrate", json=given, headers=headers)
        of, named = self.model.keys.get(key, (body, ""))
        if of != body:
            assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
            return
        job_id = answer.json()["id"]
        cached = False
        if named in self.model.jobs:
            assert job_id == named
        elif shared := self.model.find(body, "queued", "running"):
            assert job_id == shared
            self.model.jobs[shared].n_requests += 1
        elif known := self.model.find(body, "succeeded"):
            assert job_id == known
            cached = True
        else:
            self.accept(body, job_id)
        assert answer.status_code == (200 if cached else 202)
        self.model.keys.pop(key, None)
        if key and not cached:
            self.model.keys[key] = (body, job_id)

    @precondition(has_jobs)
    @rule(n=st.integers(0, 2))
    def cancel(self, n: int) -> None:
        job_id, job = self.pick(n)
        answer = self.http.post(f"/jobs/{job_id}/cancel")
        if job.status in FINAL:
            assert answer.json()["code"] == "job_already_finished"
            return
        if job.n_requests > 1:
            job.n_requests -= 1
        else:
            job.n_requests = 0
            if job.status != "canceling":
                job.status = {"queued": "canceled", "running": "canceling"}[job.status]
        assert answer.status_code == (202 if job.status == "canceling" else 200)

    @precondition(has_jobs)
    @rule(n=st.integers(0, 2))
    def retry(self, n: int) -> None:
        job_id, job = self.pick(n)
        answer = self.http.post(f"/jobs/{job_id}/retry")
        if job.status not in FINAL:
            assert answer.json()["code"] == "job_not_finished"
        elif job.status == "succeeded":
            assert answer.json()["code"] == "job_already_finished"
        elif shared := self.model.find(job.body, "queued", "running"):
            assert answer.json()["id"] == shared
            self.model.jobs[shared].n_requests += 1
        else:
            assert answer.status_code == 202
            self.accept(job.body, answer.json()["id"])

    @precondition(has_jobs)
    @rule(n=st.integers(0, 2))
    def delete(self, n: int) -> None:
        job_id, job = self.pick(n)
        answer = self.http.delete(f"/jobs/{job_id}")
        assert answer.status_code == (204 if job.status in FINAL else 409)
        if job.status in FINAL:
            self.model.drop(job_id)

    @precondition(lambda self: len(self.model.jobs) > 2)
    @rule()
    def forget(self) -> None:
        forget_old_jobs(self.store, days=-1)  # all that have ended
        for job_id, job in list(self.model.jobs.items()):
            if job.status in FINAL:
                self.model.drop(job_id)

    @precondition(has_jobs)
    @rule(n=st.integers(0, 2))
    def pop(self, n: int) -> None:
        """A worker takes it from the queue, and is not seen again."""
        job_id, job = self.pick(n)
        self.redis.lrem(f"rq:queue:{QUEUE_NAME}", 0, rq_job_id(job_id, job.attempt))
        job.is_listed = False

    @precondition(has_jobs)
    @rule(n=st.integers(0, 2), behind=st.integers(0, 1))
    def start(self, n: int, behind: int) -> None:
        job_id, job = self.pick(n)
        with self.speaks(job, behind, {"queued"}, "running") as attempt:
            self.store.start(job_id, attempt, worker="w")

    @precondition(has_jobs)
    @rule(n=st.integers(0, 2), behind=st.integers(0, 1))
    def report(self, n: int, behind: int) -> None:
        job_id, job = self.pick(n)
        with self.speaks(job, behind, {"running", "canceling"}, job.status) as attempt:
            self.store.report(job_id, attempt, Progress(stage=Stage.LOADING))

    @precondition(has_jobs)
    @rule(n=st.integers(0, 2), behind=st.integers(0, 1), is_remembered=st.booleans())
    def succeed(self, n: int, behind: int, is_remembered: bool) -> None:
        """Commit the files, then the record; a worker may die before it is remembered."""
        job_id, job = self.pick(n)
        result = commit_result(self.data_dir)
        with self.speaks(job, behind, {"running"}, "succeeded") as attempt:
            self.store.succeed(job_id, attempt, result)
            if is_remembered:
                digest = self.store.get(job_id).fields["request_digest"]
                self.store.remember_result(digest, job_id)
                self.model.results[job.body] = job_id

    @precondition(has_jobs)
    @rule(n=st.integers(0, 2), behind=st.integers(0, 1))
    def fail(self, n: int, behind: int) -> None:
        job_id, job = self.pick(n)
        end = "canceled" if job.status == "canceling" else "failed"
        with self.speaks(job, behind, {"queued", "running", "canceling"}, end) as attempt:
            self.store.fail(job_id, attempt, JobError(code="internal", detail="x"))

    @contextlib.contextmanager
    def speaks(self, job: Job, behind: int, may: set[str], becomes: str) -> Iterator[int]:
        """A worker changes a job; one that is behind, or comes too late, is refused."""
        is_current = not behind and job.status in may
        with contextlib.nullcontext() if is_current else pytest.raises(StaleAttempt):
            yield job.attempt - behind
        if is_current:
            job.become(becomes)

    @precondition(has_jobs)
    @rule(n=st.integers(0, 2), rounds=st.integers(1, 2))
    def time_passes(self, n: int, rounds: int) -> None:
        """So much that a lease, or what a queued job is given, is over; then the reaper looks."""
        job_id, job = self.pick(n)
        for _ in range(rounds):
            then = str(self.store.now_ms() - 60_000)
            self.redis.hset(self.store.key("job", job_id), "updated_at", then)
            if self.redis.hget(self.store.key("job", job_id), "lease_until"):
                self.redis.hset(self.store.key("job", job_id), "lease_until", then)
            job.is_old = True
            self.reap()

    @precondition(has_jobs)
    @rule(n=st.integers(0, 2), times=st.integers(1, MAX_ATTEMPTS))
    def workers_die(self, n: int, times: int) -> None:
        """One after the other takes it, and its lease runs out."""
        for _ in range(times):
            self.pop(n)
            self.start(n, behind=0)
            self.time_passes(n, rounds=1)

    @rule()
    def reap(self) -> None:
        """Look at once: there is nothing to be taken from anybody."""
        self.redis.delete(self.store.key("lock", "reaper"))
        requeue_orphans(self.store, self.transport, on_reaped=lambda reaped: None)
        for job in self.model.jobs.values():
            job.reap()

    @invariant()
    def every_job_is_where_the_model_says(self) -> None:
        for job_id, job in self.model.jobs.items():
            shown = self.http.get(f"/jobs/{job_id}").json()
            assert (shown["status"], shown["attempt"]) == (job.status, job.attempt)


@pytest.mark.slow
def test_a_job_is_always_where_a_small_model_says(tmp_path):
    """Whoever comes first: clients, a worker that is overtaken, time, the reaper."""
    make_model(tmp_path / "models" / "tiny")
    with running_valkey() as url, Redis.from_url(url) as redis:
        given = Settings(
            redis_url=url, data_dir=tmp_path, hub_token=None, reaper_interval_s=3600
        )
        with TestClient(create_app(given)) as http:
            machine = type("Machine", (Machine,), {
                "http": http, "redis": redis, "data_dir": tmp_path,
            })  # fmt: skip
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=50, stateful_step_count=30, deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )  # fmt: skip


def test_the_model_is_small():
    """One that is as large as what it models would prove little."""
    assert sum(len(inspect.getsource(part).splitlines()) for part in (Job, Model)) <= 50
