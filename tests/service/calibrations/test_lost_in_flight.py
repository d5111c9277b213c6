"""A request under a key whose process is killed, or whose Redis goes, while it is handled."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fimlora_client import Client
from support.durable import durable
from support.hub import Hub
from support.service import ROWS, make_model
from support.service_process import running_service, wait_until

__all__ = ["durable"]
KEY = "one-request"
FIELDS: dict[str, Any] = {
    "base_model": "org/tiny",
    "dataset": {"source": "inline", "rows": ROWS},
    "budget": 8,
}


@pytest.fixture
def service(hub: Hub, tmp_path: Path) -> Callable[[str], Any]:
    """Runs the service beside a hub that has one model."""
    hub.add("org/tiny", make_model(tmp_path / "model"))
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    return lambda url: running_service(data_dir, url, HF_ENDPOINT=hub.url, HF_TOKEN="")


@contextmanager
def sent_request(client: httpx2.Client, hub: Hub) -> Iterator[list[int]]:
    """A request that is being handled, as the hub does not answer; its status afterwards."""
    statuses: list[int] = []

    def send() -> None:
        with suppress(httpx2.TransportError):
            answer = client.post("/calibrate", json=FIELDS, headers={"Idempotency-Key": KEY})
            statuses.append(answer.status_code)

    hub.answering.clear()
    thread = threading.Thread(target=send)
    thread.start()
    try:
        wait_until(lambda: hub.requests)
        yield statuses
    finally:
        hub.answering.set()
        thread.join()


@pytest.mark.slow
def test_a_killed_process_holds_a_key_for_seconds_only(service, hub, valkey_url, redis_client):
    """Our client asks again until the lock has run out, and has its job; there is one."""
    with service(valkey_url) as (client, process), sent_request(client, hub) as statuses:
        process.kill()
        process.wait()
    [lock] = redis_client.keys("fimlora:lock:submit:*")
    left_ms = redis_client.pttl(lock)

    with service(valkey_url) as (client, _):
        answers: list[int] = []
        client.event_hooks["response"].append(lambda r: answers.append(r.status_code))
        redis_client.pexpire(lock, 5_000)  # as if it had just been renewed
        job = Client(http=client).calibrate(**FIELDS, idempotency_key=KEY)
        listed = client.get("/jobs").json()["data"]

    assert statuses == []
    assert 0 < left_ms <= 5_000
    assert answers[0] == 409
    assert [entry["id"] for entry in listed] == [job.id]


@pytest.mark.slow
def test_a_key_is_free_after_redis_was_away_at_the_end(service, hub, durable):
    """The request is refused and cannot give its lock back; the same one passes afterwards."""
    with service(durable.url) as (client, _):
        with sent_request(client, hub) as statuses:
            durable.kill()
            hub.answering.set()
            wait_until(lambda: statuses, seconds=30)
            durable.start()
        job = Client(http=client).calibrate(**FIELDS, idempotency_key=KEY)
        listed = client.get("/jobs").json()["data"]

    assert statuses == [503]
    assert [entry["id"] for entry in listed] == [job.id]
