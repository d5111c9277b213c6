"""One running app on a real Valkey for all tests of a file; the routes come from its document."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from support.service import make_model
from support.testclient import TestClient

MAX_BODY, MAX_UPLOAD = 200_000, 400_000


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, valkey_server: str) -> Settings:
    folder: Path = tmp_path_factory.mktemp("security") / "data"
    with Redis.from_url(valkey_server) as redis:
        redis.flushall()  # keys of other tests would close the service
    make_model(folder / "models" / "tiny")
    return Settings(
        redis_url=valkey_server,
        data_dir=folder,
        hub_endpoint="http://127.0.0.1:9",  # nothing listens there
        hub_token=None,
        poll_interval_s=0.02,
        keep_alive_s=0.1,
        reaper_interval_s=60,
        max_body_bytes=MAX_BODY,
        max_upload_bytes=MAX_UPLOAD,
    )


@pytest.fixture(scope="module")
def http(settings: Settings) -> Iterator[TestClient]:
    """A fault of the app is an answer, not an exception."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client
