"""The parent's side of an attempt, on a real store."""

import signal
import time

import pytest

from fimlora_jobs.runs import Runs
from fimlora_worker.process.leases import Leases
from fimlora_worker.process.memory_events import OomKills, count_oom_kills
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
    return Leases(jobs.store, jobs.transport, grace_s=10, clock=clock, count_kills=OomKills)


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


@pytest.mark.parametrize(
    ("before", "after", "status", "code"),
    [
        (OomKills(4, 9), OomKills(5, 10), signal.SIGKILL, "out_of_memory_host"),
        (OomKills(None, 9), OomKills(None, 10), signal.SIGKILL, "out_of_memory_host"),
        # Somebody else on this machine was killed for memory, and we are counted for ourselves.
        (OomKills(4, 9), OomKills(4, 10), signal.SIGKILL, "worker_lost"),
        (OomKills(None, 9), OomKills(None, 9), signal.SIGKILL, "worker_lost"),
        (OomKills(), OomKills(), signal.SIGKILL, "worker_lost"),
        # What the kernel has killed does not end by another signal, or by itself.
        (OomKills(4, 9), OomKills(5, 10), signal.SIGSEGV, "worker_lost"),
        (OomKills(4, 9), OomKills(5, 10), 1 << 8, "worker_lost"),
    ],
)
def test_a_kill_is_for_memory_where_the_kernel_has_counted_one(
    jobs: Jobs, clock, job_id, before, after, status, code
):
    """Its count for the group, or that for the machine where the group has none."""
    counts = [before]
    leases = Leases(
        jobs.store, jobs.transport, grace_s=10, clock=clock, count_kills=lambda: counts[-1]
    )
    leases.begin(f"{job_id}-1")
    jobs.redis.hset(f"fimlora:job:{job_id}", "failures", "2")
    counts.append(after)

    leases.lost(f"{job_id}-1", status)

    assert jobs.get(job_id).json_field("error")["code"] == code


def test_a_kill_shows_although_the_count_was_looked_at_right_after_it(
    jobs: Jobs, clock, job_id
):
    """Between the kill and the news of it, the lease may be renewed once."""
    counts = [OomKills(4)]
    leases = Leases(
        jobs.store, jobs.transport, grace_s=10, clock=clock, count_kills=lambda: counts[-1]
    )
    leases.begin(f"{job_id}-1")
    counts.append(OomKills(5))
    leases.hold(f"{job_id}-1")

    leases.lost(f"{job_id}-1", signal.SIGKILL)

    assert jobs.get(job_id).memory_kills == ("",)


def test_an_attempt_that_this_side_ends_is_not_ended_for_memory(jobs: Jobs, clock, job_id):
    """Even if something else in the group was, meanwhile."""
    counts = [OomKills(4)]
    leases = Leases(
        jobs.store, jobs.transport, grace_s=10, clock=clock, count_kills=lambda: counts[-1]
    )
    leases.begin(f"{job_id}-1")
    leases.note_kill()
    counts.append(OomKills(5))

    leases.lost(f"{job_id}-1", signal.SIGKILL)

    assert jobs.get(job_id).memory_kills == ()


def test_the_record_keeps_what_was_asked_for_when_memory_ran_out(jobs: Jobs, clock, job_id):
    """Of each attempt that was ended for it, and of no other; a finished run settles them."""
    counts = [OomKills(0)]
    leases = Leases(
        jobs.store, jobs.transport, grace_s=10, clock=clock, count_kills=lambda: counts[-1]
    )
    leases.begin(f"{job_id}-1")
    jobs.store.note_memory(job_id, 1, "resident 8")
    counts.append(OomKills(1))
    leases.lost(f"{job_id}-1", signal.SIGKILL)
    jobs.store.start(job_id, 2, worker="w")
    leases.begin(f"{job_id}-2")
    counts.append(OomKills(2))
    leases.lost(f"{job_id}-2", signal.SIGKILL)
    kept = jobs.get(job_id).memory_kills
    jobs.store.start(job_id, 3, worker="w")
    jobs.store.forgive(job_id, 3)

    assert kept == ("resident 8", "")
    assert jobs.get(job_id).memory_kills == ()


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
    """The counter of this process's own group, or nothing where there is none.

    In a container, the innermost group that is told of need not be one that is seen there.
    """
    membership = tmp_path / "proc" / "self" / "cgroup"
    membership.parent.mkdir(parents=True)
    membership.write_text("0::/some/group\n")
    group = tmp_path / "root" / "some" / "group"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")

    def count(*, proc="proc", groups="root"):
        return count_oom_kills(proc=tmp_path / proc, groups=tmp_path / groups)

    assert count() == OomKills(group=2)
    assert count(groups="none") == count(proc="none") == OomKills()
    (tmp_path / "proc" / "vmstat").write_text("pgfault 7\noom_kill 5\n")
    assert count(groups="none") == OomKills(host=5)
    membership.write_text("4:memory:/docker/id\n0::/\n")
    old = tmp_path / "root" / "memory"
    old.mkdir()
    (old / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert count() == OomKills(group=3, host=5)
