"""The real client on the real app; each pause of the client runs the jobs in the queue."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from typer.testing import CliRunner

from fimlora_client import Client
from fimlora_client.cli import app
from fimlora_client.cli.common.context import Connection
from fimlora_jobs.store import JobStore
from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from support.burst import run_what_is_queued
from support.jobs import LABELLED, write_jsonl
from support.model_folders import make_encoder
from support.testclient import TestClient


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT with its tokenizer, as an operator would have it."""
    return make_encoder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def data_dir(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with the model ``tiny``, which commands find by themselves."""
    folder = tmp_path / "data"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "tiny").symlink_to(tiny_model)
    monkeypatch.setenv("FIMLORA_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file that can be uploaded."""
    return write_jsonl(tmp_path / "rows.jsonl", LABELLED)


@pytest.fixture
def store(redis_client: Redis) -> JobStore:
    """The records themselves: a test plays a worker that fails through them."""
    return JobStore(redis_client)


@pytest.fixture
def http(data_dir: Path, valkey_url: str) -> Iterator[TestClient]:
    """The real app."""
    settings = Settings(redis_url=valkey_url, data_dir=data_dir, poll_interval_s=0.02)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def run_queue(
    redis_client: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Run everything that is queued, in this process, with the real engine."""
    monkeypatch.setenv("REDIS_URL", valkey_url)

    def run() -> None:
        run_what_is_queued(redis_client)

    return run


@pytest.fixture
def client(http: TestClient, run_queue: Callable[[], None]) -> Client:
    """No time passes: where the client would sleep, the jobs run."""
    return Client(http=http, sleep=lambda _: run_queue())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of a known width and without colours."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def run(client: Client, terminal: None) -> Callable[..., object]:
    """Run a command line on the real app; answers typer's result."""

    def run(*arguments: object) -> object:
        connection = Connection(connect=lambda: client)
        result = CliRunner().invoke(app, [str(a) for a in arguments], obj=connection)
        assert "Traceback" not in result.output
        return result

    return run
