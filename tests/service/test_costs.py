"""What a request may cost the service: counted, not timed."""

from collections.abc import Iterator
from contextlib import closing
from inspect import iscoroutinefunction
from threading import Event
from typing import Any

import pytest
from fastapi.dependencies.models import Dependant
from redis import Redis
from redis.connection import UnixDomainSocketConnection

from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.data_folder import DataFolder
from fimlora_jobs.durability import Durability
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.results.rebuilding import Rebuilding
from fimlora_jobs.store import JobStore
from fimlora_service.app import PARTS, open_results
from fimlora_service.calibrations.live_locks import LiveLocks
from fimlora_service.calibrations.submission import Submission
from fimlora_service.operations.metrics import Metrics
from fimlora_service.state import make_state


class CountingConnection(UnixDomainSocketConnection):
    """A connection that counts what is sent: each sending waits for an answer."""

    n_sent = 0

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        type(self).n_sent += 1
        super().send_packed_command(*args, **kwargs)


@pytest.fixture
def submission(settings, valkey_url) -> Iterator[Submission]:
    def connect() -> Redis:
        return Redis.from_url(valkey_url, connection_class=CountingConnection)

    with (
        closing(connect()) as redis,
        closing(connect()) as queue_redis,
        closing(Durability(redis, key="probe")) as durability,
    ):
        store, data_folder = JobStore(redis), DataFolder.create(settings.data_dir)
        results = open_results(settings, data_folder, store)
        transport = RqTransport(queue_redis)
        state = make_state(
            settings,
            Event(),
            data_folder,
            results,
            transport,
            LiveLocks(store),
            Metrics(),
            durability,
            Rebuilding(results, days=settings.job_retention_days),
        )
        yield state["submission"]


@pytest.mark.parametrize(("key", "n_expected"), [(None, 4), ("k", 10)], ids=["plain", "keyed"])
def test_a_new_request_is_on_record_and_queued_in_few_round_trips(
    submission, body, key, n_expected
):
    """One look, one script that makes the job and counts it, two of RQ's; a key takes six."""

    def submit(seed: int, key: str | None) -> str:
        request = CalibrationRequest.model_validate(body | {"calibration": {"seed": seed}})
        return submission.accept(request, key=key).outcome

    submit(0, "before")  # connects, and lets RQ load its script
    CountingConnection.n_sent = 0

    outcome = submit(1, key)

    assert (outcome, CountingConnection.n_sent) == ("measured", n_expected)


def dependencies_of(dependant: Dependant) -> Iterator[tuple[str, Any]]:
    """Everything that is called before a handler, by the handler's name."""
    for inner in dependant.dependencies:
        yield from dependencies_of(inner)
        yield getattr(dependant.call, "__name__", ""), inner.call


def test_no_dependency_is_sent_to_a_thread():
    """FastAPI calls a plain function in a thread, which costs more than what ours look up."""
    routes = [route for part in PARTS for route in part.router.routes]
    found = [pair for route in routes for pair in dependencies_of(route.dependant)]

    assert len({call for _, call in found}) > 10
    assert [name for name, call in found if not iscoroutinefunction(call)] == []
