"""Locks of requests: renewed while they are held, and given back whatever Redis does."""

from contextlib import suppress

import pytest
from redis import Redis
from redis.exceptions import RedisError

from fimlora_jobs.connection import impatient_redis
from fimlora_jobs.store import JobStore
from fimlora_service.calibrations.live_locks import LOCK_TTL_S, LiveLocks
from support.durable import durable

__all__ = ["durable"]
TTL_S = 60.0  # longer than any test: what is gone was given back


@pytest.fixture
def locks(store: JobStore) -> LiveLocks:
    return LiveLocks(store, ttl_s=TTL_S)


def test_a_lock_is_there_as_long_as_it_is_held(locks, store, redis_client):
    """Its time starts anew with every round; after the block nothing of it is left."""
    key = store.key("lock", "a")
    with locks.hold("a") as is_held:
        redis_client.pexpire(key, 5_000)
        locks.renew()
        left_ms = redis_client.pttl(key)
    locks.renew()

    assert is_held
    assert left_ms > 5_000
    assert redis_client.exists(key) == 0


def test_all_locks_of_a_process_are_renewed_in_one_round(locks, store, redis_client):
    """However many requests there are at once."""
    names = ["a", "b", "c"]
    with locks.hold("a"), locks.hold("b"), locks.hold("c"):
        for name in names:
            redis_client.pexpire(store.key("lock", name), 5_000)
        locks.renew()
        left_ms = [redis_client.pttl(store.key("lock", name)) for name in names]

    assert min(left_ms) > 5_000


def test_only_one_holds_a_lock(locks, store):
    """Also of two processes."""
    others = LiveLocks(store, ttl_s=TTL_S)
    with locks.hold("a"), others.hold("a") as is_held:
        assert not is_held
    with others.hold("a") as is_held:
        assert is_held


def test_a_lock_that_ran_out_is_taken_again(locks, store, redis_client):
    """Redis was away, or forgot it: the request lives, and so does its lock."""
    key = store.key("lock", "a")
    with locks.hold("a"):
        redis_client.delete(key)
        locks.renew()
        assert redis_client.exists(key) == 1
    assert redis_client.exists(key) == 0


def test_a_lock_that_somebody_else_took_is_left_to_him(locks, store, redis_client):
    """Neither prolonged nor given back by who had it before."""
    others = LiveLocks(store, ttl_s=TTL_S)
    with locks.hold("a"):
        redis_client.delete(store.key("lock", "a"))
        with others.hold("a") as is_held:
            locks.renew()
            assert is_held
            theirs = redis_client.get(store.key("lock", "a"))
            others.renew()
            assert redis_client.get(store.key("lock", "a")) == theirs
    assert redis_client.exists(store.key("lock", "a")) == 0


@pytest.mark.slow
def test_a_lock_is_given_back_once_redis_answers_again(durable):
    """It was away when the request ended; the next round makes up for it."""
    with impatient_redis(durable.url) as redis, Redis.from_url(durable.url) as watcher:
        store = JobStore(redis)
        locks, key = LiveLocks(store, ttl_s=TTL_S), store.key("lock", "a")
        with locks.hold("a"):
            durable.kill()
        with suppress(RedisError):
            locks.renew()
        durable.start()
        before = watcher.exists(key)
        locks.renew()

        assert (before, watcher.exists(key)) == (1, 0)


def test_what_a_killed_process_holds_is_free_within_seconds(store, redis_client):
    """By itself, as it can give nothing back: before any client has lost its patience."""
    with LiveLocks(store).hold("a"):
        assert 0 < redis_client.pttl(store.key("lock", "a")) <= 1000 * LOCK_TTL_S <= 5_000
