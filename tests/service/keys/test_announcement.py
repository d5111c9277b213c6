"""Who is served, as the service says it at its start."""

import logging

import pytest

from fimlora_service.app import create_app
from support.keys import OPERATOR
from support.testclient import TestClient


def started(settings, caplog) -> tuple[str, dict]:
    """Level and fields of what is said."""
    caplog.clear()
    with caplog.at_level(logging.INFO), TestClient(create_app(settings)):
        pass
    [record] = [r for r in caplog.records if r.message.startswith("access.")]
    return record.levelname, vars(record)


def without_keys(settings, **more):
    return settings.model_copy(update={"admin_key": None} | more)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_is_told_how_the_first_key_is_made(settings, caplog, host):
    """Nothing is wrong with it."""
    level, said = started(without_keys(settings, host=host), caplog)

    assert level == "INFO"
    assert "this machine only" in said["serves"]
    assert "fimlora keys create" in said["next"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "box.lan"])
def test_listening_to_others_without_keys_is_warned_of(settings, caplog, host):
    """In one sentence: they would all be refused."""
    level, said = started(without_keys(settings, host=host), caplog)

    assert level == "WARNING"
    assert f"listening on {host}, but others are refused until there is a key" in said["next"]


def test_with_keys_there_is_nothing_to_do(settings, caplog):
    """Whether the operator has set one, or one was made."""
    level, said = started(settings, caplog)

    assert (level, said["serves"]) == ("INFO", "who has an API key")


def test_the_first_key_ends_it(settings, http, caplog):
    """Also for a service that starts without the operator's own key."""
    assert http.post(
        "/keys", json={"name": "a", "scopes": ["admin"]}, headers=OPERATOR
    ).is_success
    level, said = started(without_keys(settings, host="0.0.0.0"), caplog)

    assert (level, said["serves"]) == ("INFO", "who has an API key")


def test_readiness_tells_it_too(settings, http):
    """What `fimlora up` shows."""
    with TestClient(create_app(without_keys(settings))) as other:
        assert other.get("/readyz").json()["access"] == "this_machine"
    assert http.get("/readyz").json()["access"] == "api_keys"
