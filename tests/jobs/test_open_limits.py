"""No more jobs are open than are allowed, however many are made at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from fimlora_contract.jobs import JobError, JobStatus
from fimlora_jobs.open_limits import OpenLimits, TooManyOpen
from fimlora_jobs.store import JobStore, RequestTaken


@pytest.fixture
def store(redis_client) -> JobStore:
    return JobStore(redis_client)


def create(store: JobStore, limits: OpenLimits, *, job_id: str | None = None, **options):
    return store.create(
        job_id or store.new_id(), request={}, resolved={}, digest="d", limits=limits, **options
    )


def n_open(store: JobStore) -> int:
    return len(store.open_jobs())


def n_counted(store: JobStore) -> int:
    return int(store.redis.hget(store.key("open_jobs", "by_owner"), "") or 0)


@pytest.mark.parametrize("limits", [OpenLimits(total=5), OpenLimits(per_owner=5)])
def test_of_many_at_once_as_many_are_made_as_are_allowed(store, limits):
    """Counted by the step that makes them: none too many, and none too few."""

    def refusal(_: int) -> TooManyOpen | None:
        try:
            create(store, limits)
        except TooManyOpen as full:
            return full
        return None

    with ThreadPoolExecutor(8) as pool:
        refusals = list(filter(None, pool.map(refusal, range(40))))

    assert n_open(store) == n_counted(store) == 40 - len(refusals) == 5
    assert {full.limit for full in refusals} == {5}
    assert {full.is_owners for full in refusals} == {limits.per_owner == 5}


def end_as_succeeded(store: JobStore, job_id: str) -> None:
    store.start(job_id, 1, worker="w")
    store.succeed(job_id, 1, {})


def end_as_failed(store: JobStore, job_id: str) -> None:
    store.fail(job_id, 1, JobError(code="internal", detail="gone"))


def end_as_canceled_while_running(store: JobStore, job_id: str) -> None:
    store.start(job_id, 1, worker="w")
    store.request_cancel(job_id)
    store.confirm_cancel(job_id, 1)


ENDS = [
    end_as_succeeded, end_as_failed, JobStore.request_cancel, end_as_canceled_while_running,
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("limits", [OpenLimits(total=1), OpenLimits(per_owner=1)])
def test_a_job_that_ends_leaves_its_place(store, limits, end):
    """However it ends; a job that goes back to the queue is still open."""
    first = create(store, limits).id
    store.requeue(first, 1, counted=False)
    with pytest.raises(TooManyOpen):
        create(store, limits)

    ended = create(store, OpenLimits()).id
    end(store, ended)
    store.delete(ended)
    with pytest.raises(TooManyOpen):
        create(store, limits)

    store.request_cancel(first)
    assert (n_open(store), n_counted(store)) == (0, 0)
    assert create(store, limits).status is JobStatus.QUEUED


def test_what_is_refused_leaves_nothing_behind(store):
    """Equal requests do not find it, and nothing counts it."""
    kept = create(store, OpenLimits(total=1), in_place_of="", counted_as="measured")
    with pytest.raises(RequestTaken):  # says so before it says that there is no room
        create(store, OpenLimits(total=1), in_place_of="")
    with pytest.raises(TooManyOpen):
        create(store, OpenLimits(total=1), in_place_of=kept.id, counted_as="measured")

    assert store.shared("d") == kept.id
    assert store.page(limit=10) == [store.shown(kept.id)]
    assert store.redis.hget(store.key("cache_figures"), "measured") == b"1"


def test_the_same_job_is_made_again_without_a_place(store):
    """A crash came between the record and the answer: the job has its place already."""
    first = create(store, OpenLimits(total=1, per_owner=1))

    again = create(store, OpenLimits(total=1, per_owner=1), job_id=first.id)

    assert again == first
    assert n_counted(store) == 1


def test_tenants_do_not_take_each_others_places(store):
    """The count is by the owner that the record names."""
    limits = OpenLimits(per_owner=1)
    create(store, limits, owner="a")
    create(store, limits, owner="b")
    with pytest.raises(TooManyOpen):
        create(store, limits, owner="a")
