"""The two scripts that the images carry or are built with."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest
from redis import Redis
from rq import Queue, Worker
from rq.utils import utcformat

ROOT = Path(__file__).parents[2]
HEALTH = ROOT / "docker" / "worker_health.py"


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
    """Exit other than 0 when nobody listens."""
    answer = check("unix:///tmp/fimlora-nobody-listens-here")

    assert answer.returncode == 1
    assert "ConnectionError" in answer.stderr
