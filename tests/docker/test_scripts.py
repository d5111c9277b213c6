"""The scripts that the images carry or are built with."""

import contextlib
import importlib.util
import os
import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from redis import Redis
from rq import Queue, Worker
from rq.utils import utcformat

ROOT = Path(__file__).parents[2]
HEALTH = ROOT / "docker" / "worker_health.py"
SERVICE_HEALTH = ROOT / "docker" / "service_health.py"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=]", line)[0] for line in requirements}


def test_the_api_image_gets_no_torch(project: dict[str, object]) -> None:
    """The service's list has its web framework and nothing of the engine's."""
    found = names(load(ROOT / "docker" / "requirements.py").requirements(project, "service"))

    assert {"pydantic", "fastapi", "uvicorn", "rq", "redis"} <= found
    assert not found & {"torch", "transformers", "peft", "datasets"}


def test_extras_of_our_own_are_followed(project: dict[str, object]) -> None:
    """The worker's list includes the engine's, and never the package itself."""
    found = names(load(ROOT / "docker" / "requirements.py").requirements(project, "worker"))

    assert {"pydantic", "rq", "datasets", "torch", "peft"} <= found
    assert not any(name.startswith("fimlora") for name in found)


def check(url: str) -> subprocess.CompletedProcess[str]:
    """Run the health check as docker does."""
    environment = os.environ | {"REDIS_URL": url}
    return subprocess.run(
        [sys.executable, str(HEALTH)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def register(redis: Redis, *, hostname: str, heard: datetime) -> None:
    """Leave in Redis what a worker of RQ leaves there."""
    worker = Worker([Queue("fimlora", connection=redis)], connection=redis, name=hostname)
    worker.hostname = hostname
    worker.register_birth()
    redis.hset(worker.key, "last_heartbeat", utcformat(heard))


def test_a_worker_that_beats_is_healthy(valkey_url: str, redis_client: Redis) -> None:
    """Exit 0 for a worker of this host that was heard of just now."""
    register(redis_client, hostname=socket.gethostname(), heard=datetime.now(UTC))

    answer = check(valkey_url)

    assert (answer.returncode, answer.stderr) == (0, "")


def test_a_worker_that_fell_silent_is_not(valkey_url: str, redis_client: Redis) -> None:
    """Exit 1 with the age of the last heartbeat, whatever other hosts do."""
    silent_since = datetime.now(UTC) - timedelta(minutes=5)
    register(redis_client, hostname=socket.gethostname(), heard=silent_since)
    register(redis_client, hostname="another-host", heard=datetime.now(UTC))

    answer = check(valkey_url)

    assert answer.returncode == 1
    assert answer.stderr.startswith("last heartbeat 30")


def test_no_worker_at_all_is_not_healthy(valkey_url: str) -> None:
    """Exit 1 on an empty server."""
    answer = check(valkey_url)

    assert answer.returncode == 1
    assert answer.stderr == "no worker of this host is registered\n"


def test_an_unreachable_valkey_is_not_healthy() -> None:
    """Exit 1 and one sentence when nobody listens; it has no password."""
    answer = check("redis://:s3cret@127.0.0.1:1/0")

    assert answer.returncode == 1
    assert answer.stderr.startswith("redis://:***@127.0.0.1:1/0 does not answer: ")
    assert answer.stderr.count("\n") == 1
    assert "s3cret" not in answer.stderr


@pytest.mark.parametrize("url", ["http://s3cret", "redis://:s3cret@h:x"])
def test_an_address_that_is_none_is_not_healthy(url: str) -> None:
    """Exit 1 and one sentence, too."""
    answer = check(url)

    assert answer.returncode == 1
    assert answer.stderr.startswith("REDIS_URL cannot be used: ")
    assert answer.stderr.count("\n") == 1
    assert "s3cret" not in answer.stderr


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that always answers the same."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/readyz"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b"{}", ""),
        (
            503,
            b'{"checks": {"redis": "does not answer", "workers": "ok"}}',
            "not ready (status 503): redis: does not answer\n",
        ),
        (500, b"<html>", "not ready (status 500): it does not say why\n"),
        (503, b"[]", "not ready (status 503): it does not say why\n"),
    ],
)
def test_the_health_of_the_api_is_a_sentence(status: int, body: bytes, said: str) -> None:
    """It is what `docker inspect` shows; a traceback would hide it."""
    with answering(status, body) as url:
        done = subprocess.run(
            [sys.executable, str(SERVICE_HEALTH), url],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert (done.returncode, done.stderr) == (int(status != 200), said)


def test_an_api_that_is_not_there_is_not_healthy() -> None:
    """Nobody listens, or nothing is an address."""
    for url in ("http://127.0.0.1:1/readyz", "127.0.0.1"):
        done = subprocess.run(
            [sys.executable, str(SERVICE_HEALTH), url],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert done.returncode == 1
        assert done.stderr.startswith("the API does not answer: ")
        assert done.stderr.count("\n") == 1
