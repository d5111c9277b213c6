"""The parent's side of an attempt, on a real store."""

import signal
import time

import pytest

from fimlora_jobs.runs import Runs
from fimlora_worker.process.leases import Leases
from fimlora_worker.process.memory_events import count_oom_kills
from support.jobs import Jobs


class Clock:
    """A clock that tests move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def job_id(jobs: Jobs) -> str:
    """A job whose first attempt is running."""
    job_id = jobs.submit()
    jobs.store.start(job_id, 1, worker="w")
    return job_id


@pytest.fixture
def leases(jobs: Jobs, clock: Clock) -> Leases:
    return Leases(jobs.store, jobs.transport, grace_s=10, clock=clock, count_kills=lambda: None)


def test_holding_renews_the_lease(jobs: Jobs, leases: Leases, job_id):
    """While the parent looks after a job, no reaper takes it."""
    jobs.redis.hset(f"fimlora:job:{job_id}", "lease_until", "1")

    assert leases.hold(f"{job_id}-1") is False
    assert jobs.get(job_id).lease_until_ms > jobs.store.now_ms() + 10_000


def test_an_attempt_that_has_not_begun_is_left_alone(jobs: Jobs, leases: Leases, clock):
    """The child may still be importing: the lease is held for it, and nothing is killed."""
    job_id = jobs.submit()
    leases.begin(f"{job_id}-1")
    clock.now = 100

    assert [leases.hold(f"{job_id}-1") for _ in range(3)] == [False] * 3
    assert jobs.get(job_id).lease_until_ms > jobs.store.now_ms() + 10_000


@pytest.mark.parametrize("end", ["cancel", "overtaken", "failed", "gone"])
def test_an_unwanted_attempt_is_killed_after_the_grace(
    jobs: Jobs, leases: Leases, clock, job_id, end
):
    """A cancel request, a newer attempt, an end or a lost record: it has ten seconds."""
    match end:
        case "cancel":
            jobs.store.request_cancel(job_id)
        case "overtaken":
            jobs.store.requeue(job_id, 1)
        case "failed":
            jobs.redis.hset(f"fimlora:job:{job_id}", "status", "failed")
        case "gone":
            jobs.redis.delete(f"fimlora:job:{job_id}")

    answers = []
    for clock.now in (0, 9.9, 10):
        answers.append(leases.hold(f"{job_id}-1"))

    assert answers == [False, False, True]


def test_a_lost_attempt_is_followed_by_the_next_at_once(jobs: Jobs, leases: Leases, job_id):
    """It goes to the front of the queue, and the loss is counted."""
    leases.lost(f"{job_id}-1", signal.SIGKILL)

    record = jobs.get(job_id)
    assert (record.status, record.attempt, record.failures) == ("queued", 2, 1)
    assert (job_id, 2) in jobs.transport.waiting()


def test_what_is_lost_while_the_worker_stops_is_not_counted(jobs: Jobs, leases: Leases, job_id):
    """Whoever finds it, here or elsewhere: the stop was an order, and took too long."""
    leases.stop()
    leases.begin(f"{job_id}-1")

    leases.lost(f"{job_id}-1", signal.SIGKILL)

    record = jobs.get(job_id)
    assert (record.status, record.attempt, record.failures) == ("queued", 2, 0)
    [ended] = record.earlier_attempts
    assert (ended.attempt, ended.reason, ended.counted) == (1, "handed_over", False)


def test_a_kill_for_memory_names_memory(jobs: Jobs, clock, job_id):
    """When the kernel's counter has moved, the last attempt fails for want of memory."""
    counts = iter([4, 5])
    leases = Leases(
        jobs.store, jobs.transport, grace_s=10, clock=clock, count_kills=lambda: next(counts)
    )
    leases.begin(f"{job_id}-1")
    jobs.redis.hset(f"fimlora:job:{job_id}", "failures", "2")

    leases.lost(f"{job_id}-1", signal.SIGKILL)

    error = jobs.get(job_id).json_field("error")
    assert error["code"] == "out_of_memory_host"


def test_a_child_without_an_end_on_record_is_settled(jobs: Jobs, leases: Leases, job_id):
    """RQ says its job has ended, our record says it runs: the attempt is given up."""
    leases.settle(f"{job_id}-1")

    assert jobs.get(job_id).attempt == 2
    leases.settle(f"{job_id}-1")  # nothing of the second attempt is touched
    assert jobs.get(job_id).attempt == 2


def test_runs_are_held_on_to_with_the_lease(jobs: Jobs, leases: Leases, job_id):
    """Those of an attempt and those of a hand; when its process is lost, at once anybody's."""
    runs = Runs(jobs.store, job_id)
    hand = f"{job_id}-hand_1"
    for run, holder in (("a", f"{job_id}-1"), ("b", hand)):
        runs.claim([run], holder=holder, for_ms=200)
        leases.begin(holder)
    time.sleep(0.25)

    assert runs.claimed() == {"a": f"{job_id}-1", "b": hand}
    leases.lost(hand, signal.SIGKILL)
    assert runs.claimed() == {"a": f"{job_id}-1"}
    record = jobs.get(job_id)
    assert (record.status, record.attempt, record.failures) == ("running", 1, 0)
    leases.settle(f"{job_id}-1")
    assert runs.claimed() == {}


@pytest.mark.parametrize("end", ["cancel", "failed", "gone"])
def test_a_hand_that_nobody_wants_is_killed_after_the_grace(
    jobs: Jobs, leases: Leases, clock, job_id, end
):
    """Until then, and while the job waits for its next attempt, it goes on."""
    hand = f"{job_id}-hand_1"
    jobs.store.requeue(job_id, 1)
    wanted = [leases.hold(hand)]
    jobs.store.start(job_id, 2, worker="w")
    wanted.append(leases.hold(hand))
    match end:
        case "cancel":
            jobs.store.request_cancel(job_id)
        case "failed":
            jobs.redis.hset(f"fimlora:job:{job_id}", "status", "failed")
        case "gone":
            jobs.redis.delete(f"fimlora:job:{job_id}")

    answers = []
    for clock.now in (0, 9.9, 10):
        answers.append(leases.hold(hand))

    assert (wanted, answers) == ([False, False], [False, False, True])


@pytest.mark.parametrize("told", ["stopped", "settle"])
def test_the_end_of_a_hand_is_none_of_its_job(jobs: Jobs, leases: Leases, job_id, told):
    """Stopped by an operator, or over: the job goes on, and its run is free."""
    hand = f"{job_id}-hand_1"
    Runs(jobs.store, job_id).claim(["a"], holder=hand)
    getattr(leases, told)(hand)

    assert jobs.get(job_id).status == "running"
    assert Runs(jobs.store, job_id).claimed() == {}


def test_kills_for_memory_are_read_from_the_control_group(tmp_path):
    """The counter of this process's own group, or nothing where there is none."""
    membership = tmp_path / "proc" / "self" / "cgroup"
    membership.parent.mkdir(parents=True)
    membership.write_text("0::/some/group\n")
    group = tmp_path / "root" / "some" / "group"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")

    def count(*, proc="proc", groups="root"):
        return count_oom_kills(proc=tmp_path / proc, groups=tmp_path / groups)

    assert count() == 2
    assert count(groups="none") is None
    assert count(proc="none") is None
