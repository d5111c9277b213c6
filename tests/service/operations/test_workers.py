"""GET /workers."""

import json

from support.presence import GPU, enter_worker


def test_workers_tell_device_state_and_job(http, store):
    """Each by name; a busy one says with what, and since when."""
    enter_worker(store, name="w2", hardware=GPU)
    busy = enter_worker(store, name="w1")
    busy.begin("job_0123-2")

    page = http.get("/workers").json()

    first, second = page["data"]
    assert (page["object"], first["object"]) == ("list", "worker")
    assert (first["name"], first["state"], first["job_id"]) == ("w1", "busy", "job_0123")
    assert first["started_at"] <= first["since"] <= first["last_seen"]
    assert (second["name"], second["state"], second["job_id"]) == ("w2", "idle", None)
    assert (second["device"], second["memory_bytes"]) == ("cuda", 80 << 30)


def test_a_worker_that_is_done_is_idle_again(http, store):
    """The end of a job counts from when it ended."""
    worker = enter_worker(store)
    before = http.get("/workers").json()["data"][0]
    worker.begin("job_0-1")
    worker.end()

    after = http.get("/workers").json()["data"][0]

    assert (after["state"], after["job_id"]) == ("idle", None)
    assert after["since"] >= before["since"]


def test_a_dead_worker_is_not_shown(http, store, redis_client):
    """Whoever has not been seen for as long as a lease is struck; who left is gone at once."""
    enter_worker(store, name="dead")
    gone = enter_worker(store, name="gone")
    enter_worker(store, name="alive")
    entry = json.loads(redis_client.hget("fimlora:workers", "dead"))
    entry["seen_ms"] -= 21_000
    redis_client.hset("fimlora:workers", "dead", json.dumps(entry))
    gone.leave()
    gone.refresh()  # a thread that comes late changes nothing

    assert [w["name"] for w in http.get("/workers").json()["data"]] == ["alive"]
    assert redis_client.hkeys("fimlora:workers") == [b"alive"]
