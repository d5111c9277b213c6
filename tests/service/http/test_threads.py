"""Who only looks has threads of his own, whatever all others are busy with."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import anyio.to_thread
import pytest
from fastapi import FastAPI

from fimlora_service.http.threads import N_THREADS, Threads, in_thread

LONG_S = 20
# Whatever is asked of a folder or a bucket, and may have to wait for it.
ON_FILES = (
    "/adapters", "/artifacts", "/cache", "/datasets", "/models", "/rank-patterns", "/readyz",
    "/result",
)  # fmt: skip


class Door:
    """A step that nobody leaves before all are let out."""

    def __init__(self) -> None:
        self.inside, self._lock, self._open = 0, threading.Lock(), threading.Event()

    def wait(self) -> None:
        with self._lock:
            self.inside += 1
        assert self._open.wait(60)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def door(app: FastAPI) -> Door:
    """What ``GET /hold/writes`` and ``GET /hold/files`` wait at, in threads of that kind."""
    door = Door()

    @app.get("/hold/writes", include_in_schema=False)
    def hold_writes() -> None:
        door.wait()

    @app.get("/hold/files", include_in_schema=False)
    async def hold_files() -> None:
        await in_thread(Threads.FILES, door.wait)

    @app.get("/n_threads", include_in_schema=False)
    async def n_threads() -> dict[str, int]:
        writes = anyio.to_thread.current_default_thread_limiter().total_tokens
        return {"writes": int(writes), "files": N_THREADS[Threads.FILES]}

    return door


@pytest.fixture
def taken(door, http) -> Callable:
    """Takes all threads of a kind inside a block, with more requests than there are threads."""

    @contextmanager
    def take(kind: str) -> Iterator[ThreadPoolExecutor]:
        n = http.get("/n_threads").json()[kind]
        with ThreadPoolExecutor(n + 20) as pool:
            for _ in range(n + 5):
                pool.submit(http.get, f"/hold/{kind}")
            try:
                deadline = threading.Event()
                while door.inside < n:
                    assert not deadline.wait(0.01)
                yield pool
            finally:
                door.open()

    return take


def addresses(app: FastAPI, job_id: str) -> list[str]:
    """Every address that GET takes, about a job that there is."""
    values = {"id": job_id, "other": job_id, "name": "sst2", "tag": "prod"}
    values["digest"] = "sha256:" + "ab" * 32
    paths = [path for path, methods in app.openapi()["paths"].items() if "get" in methods]
    return [path.format_map(values) for path in paths]


def test_every_look_is_answered_while_all_writers_are_busy(http, app, job_id, taken):
    """Of all routes; the answer may be that there is nothing of the kind."""
    with taken("writes") as pool:
        asked: dict[str, Future] = {
            path: pool.submit(http.get, path, headers={"accept": "application/json"})
            for path in addresses(app, job_id)
        }
        statuses = {path: one.result(LONG_S).status_code for path, one in asked.items()}

    assert statuses[f"/jobs/{job_id}"] == 200
    assert len(statuses) > 20
    assert max(statuses.values()) < 500


def test_polls_are_answered_while_all_threads_for_files_are_busy(http, app, job_id, taken):
    """Downloads from a slow store, uploads to a slow disk: only their like waits for them."""
    polls = [p for p in addresses(app, job_id) if not any(name in p for name in ON_FILES)]
    with taken("files") as pool:
        asked = {
            path: pool.submit(http.get, path, headers={"accept": "application/json"})
            for path in [*polls, f"/jobs/{job_id}?wait=0.1"]
        }
        statuses = {path: one.result(LONG_S).status_code for path, one in asked.items()}

    assert {f"/jobs/{job_id}", f"/jobs/{job_id}/events", "/jobs", "/workers"} <= set(statuses)
    assert max(statuses.values()) < 500


def test_a_job_is_canceled_while_all_threads_for_files_are_busy(http, job_id, taken):
    """What writes does not wait for them either."""
    with taken("files") as pool:
        answer = pool.submit(http.post, f"/jobs/{job_id}/cancel").result(LONG_S)

    assert answer.json()["status"] == "canceled"
