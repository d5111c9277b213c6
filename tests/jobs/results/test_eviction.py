"""Laws of choosing what goes, and the steps that keep choosing and using apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimlora_jobs.catalogue import Catalogue
from fimlora_jobs.results.eviction import Entry, Limits, choose_victims
from fimlora_jobs.results.usage import ResultUsage
from fimlora_jobs.store import JobStore

NOW = 1_000
entries = st.lists(
    st.builds(Entry, st.sampled_from("abcdefghij"), st.integers(0, 50), st.integers(0, NOW)),
    unique_by=lambda e: e.digest,
)
limits = st.builds(
    Limits,
    st.none() | st.integers(0, 200),
    st.none() | st.integers(0, NOW),
    st.integers(0, NOW),
)
needed = st.frozensets(st.sampled_from("abcdefghij"))


@given(entries, needed, limits)
def test_what_is_needed_or_has_not_rested_stays(entries, needed, limits):
    """Whatever the limits ask for."""
    victims = choose_victims(entries, needed=needed, limits=limits, now_ms=NOW)

    assert not needed & {v.digest for v in victims}
    assert all(NOW - v.used_ms >= limits.rest_ms for v in victims)


@given(entries, needed, limits)
def test_the_limits_hold_as_far_as_they_can(entries, needed, limits):
    """What is left is within them, or nothing else may go."""
    victims = choose_victims(entries, needed=needed, limits=limits, now_ms=NOW)

    left = [e for e in entries if e not in victims]
    free = [e for e in left if e.digest not in needed and NOW - e.used_ms >= limits.rest_ms]
    if limits.max_bytes is not None and sum(e.size for e in left) > limits.max_bytes:
        assert not free
    if limits.max_age_ms is not None:
        assert all(NOW - e.used_ms <= limits.max_age_ms for e in free)


@given(entries, needed, limits)
def test_nothing_goes_without_a_reason(entries, needed, limits):
    """Each victim is too old, or without it the rest would still be too large; oldest first."""
    victims = choose_victims(entries, needed=needed, limits=limits, now_ms=NOW)

    assert [v.used_ms for v in victims] == sorted(v.used_ms for v in victims)
    total = sum(e.size for e in entries)
    for victim in victims:
        too_old = limits.max_age_ms is not None and NOW - victim.used_ms > limits.max_age_ms
        assert too_old or (limits.max_bytes is not None and total > limits.max_bytes)
        total -= victim.size


@given(entries, needed, limits, st.randoms())
def test_the_order_of_the_listing_is_irrelevant(entries, needed, limits, random):
    """Two processes that list differently choose the same."""
    shuffled = list(entries)
    random.shuffle(shuffled)
    options = {"needed": needed, "limits": limits, "now_ms": NOW}

    assert choose_victims(shuffled, **options) == choose_victims(entries, **options)


@pytest.fixture
def usage(redis_client):
    return ResultUsage(JobStore(redis_client))


def test_a_result_that_was_used_meanwhile_cannot_be_claimed(usage, redis_client):
    """Between choosing and deleting, a use wins."""
    assert usage.revive("sha256:a")
    seen = usage.last_uses()["sha256:a"]
    redis_client.zadd("fimlora:results_used", {"sha256:a": seen + 1})

    assert not usage.claim("sha256:a", seen_ms=seen)
    assert not usage.claim("sha256:a", seen_ms=None)
    assert usage.use("sha256:a")


def test_a_claimed_result_cannot_be_used_until_it_is_committed_again(usage):
    """A reader that comes too late is told; a committer waits for the deletion's end."""
    assert usage.claim("sha256:a", seen_ms=None)

    assert not usage.use("sha256:a")
    assert not usage.revive("sha256:a")
    assert not usage.claim("sha256:a", seen_ms=None)
    usage.release("sha256:a")
    assert not usage.use("sha256:a")
    assert usage.revive("sha256:a")
    assert usage.use("sha256:a")


def test_a_digest_that_somebody_made_up_leaves_nothing(usage, redis_client):
    """A result that is there and not on record, as after a loss of Redis, is noted once seen."""
    assert usage.use("sha256:made-up") is None
    assert redis_client.keys("*") == []

    assert usage.use("sha256:seen", is_there=True)
    assert usage.use("sha256:seen")
    assert not usage.claim("sha256:seen", seen_ms=None)


def test_what_pins_and_open_jobs_need_is_known(usage):
    """The newest entry of every pin, and what jobs that have not ended plan from."""
    store, catalogue = usage.store, Catalogue(usage.store)
    for digest in ("old", "new"):
        catalogue.pin("sst2", "prod", digest)
    catalogue.pin("other", "prod", "third")
    fields = {"request": {}, "resolved": {}, "digest": "d"}
    store.create("job_1", **fields)
    store.start("job_1", 1, worker="w")
    store.succeed("job_1", 1, {"digest": "measured", "artifacts": []})
    store.create("job_2", **fields, statistics_from="job_1")
    store.create("job_3", **fields, statistics_from="job_gone")

    assert usage.needed() == {"new", "third", "measured"}
    store.request_cancel("job_2")
    assert usage.needed() == {"new", "third"}
