"""Kept answers to GET /jobs/{id}."""

import pytest

from fimlora_jobs.reader import JobMissing
from fimlora_service.jobs.cached_answers import JobViews


def test_an_unchanged_job_is_not_made_into_json_again(http, store, job_id):
    """The very bytes of the answer before, under each prefix its own."""
    views = JobViews(store)
    view = views.get(job_id, prefix="")

    assert views.get(job_id, prefix="") is view
    assert views.get(job_id, prefix="/v1") is not view
    assert view.body == http.get(f"/jobs/{job_id}").content


def test_a_changed_job_is_answered_as_it_is_now(store, job_id):
    """In every state; and not at all once it is deleted."""
    views = JobViews(store)
    queued = views.get(job_id, prefix="")
    store.start(job_id, 1, worker="w")
    running = views.get(job_id, prefix="")
    store.request_cancel(job_id)
    store.confirm_cancel(job_id, 1)
    canceled = views.get(job_id, prefix="")

    assert [b'"status":"%s"' % s in v.body for s, v in [
        (b"queued", queued), (b"running", running), (b"canceled", canceled),
    ]] == [True] * 3  # fmt: skip
    assert [queued.is_final, running.is_final, canceled.is_final] == [False, False, True]
    store.delete(job_id)
    with pytest.raises(JobMissing):
        views.get(job_id, prefix="")


def test_what_is_larger_than_the_limit_is_answered_and_not_kept(store, job_id):
    """Memory stays bounded whatever the size of one answer."""
    views = JobViews(store, max_bytes=100)

    first, second = (views.get(job_id, prefix="") for _ in range(2))

    assert first.body == second.body
    assert first is not second
