"""Old records are forgotten, on a real Valkey."""

import pytest
from redis import Redis

from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import created_ms, new_job_id
from fimlora_jobs.retention import DAY_MS, forget_old_jobs, is_past
from fimlora_jobs.store import JobStore


@pytest.fixture
def store(redis_client: Redis) -> JobStore:
    return JobStore(redis_client)


def job_of(store: JobStore, *, days_ago: float, ended: bool) -> str:
    """A job with an id as of then."""
    id_ = new_job_id(store.now_ms() - int(days_ago * DAY_MS))
    store.create(id_, request={}, resolved={}, digest="sha256:00")
    if ended:
        store.start(id_, 1, worker="w")
        store.succeed(id_, 1, {"digest": "d", "artifacts": []})
    return id_


def test_only_what_ended_and_is_old_is_forgotten(store):
    """An open job is kept however old it is."""
    old = job_of(store, days_ago=91, ended=True)
    still_open = job_of(store, days_ago=400, ended=False)
    young = job_of(store, days_ago=89, ended=True)

    assert forget_old_jobs(store, days=90) == 1

    with pytest.raises(JobMissing):
        store.get(old)
    assert {r.id for r in store.page(limit=10)} == {still_open, young}


def test_an_old_id_is_told_from_one_that_never_was(store):
    """410 or 404: the id says when it was made."""
    now = store.now_ms()

    assert is_past(new_job_id(now - 91 * DAY_MS), now_ms=now, days=90)
    assert not is_past(new_job_id(now - 89 * DAY_MS), now_ms=now, days=90)
    assert not is_past("job_none", now_ms=now, days=90)
    assert abs(created_ms(store.new_id()) - now) < 10_000
