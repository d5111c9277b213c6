"""The app of ``tests/service/conftest.py``, with keys in use."""

from collections.abc import Callable

import pytest

from fimlora_service.settings import Settings
from support.keys import ADMIN_KEY, Visitor, make_key
from support.testclient import TestClient


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"admin_key": Settings(admin_key=ADMIN_KEY).admin_key})


@pytest.fixture
def visitor(http: TestClient) -> Callable[..., Visitor]:
    """Makes somebody with a key; takes what POST /keys takes."""
    return lambda **body: make_key(http, **body)
