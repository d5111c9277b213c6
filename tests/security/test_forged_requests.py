"""Server side request forgery (OWASP API7): no request makes the service call or open what it names."""

from typing import Any

import pytest

from fimlora_service.app import create_app
from security.routes import DOCUMENT, ROUTES, Route
from support.hostile_hub import hostile_hub
from support.service import ROWS
from support.testclient import TestClient

INLINE = {"source": "inline", "rows": ROWS}
SUBMISSIONS = [route for route in ROUTES if "webhook" in route.fields]
ADDRESSES = [
    "http://169.254.169.254/latest/meta-data/", "http://localhost:6379/", "http://127.0.0.1/",
    "http://[::1]/", "http://[::ffff:169.254.169.254]/", "http://2130706433/", "http://0x7f.1/",
    "http://hooks.example/", "https://hooks.example:22/", "https://hooks.example.evil.example/",
    "https://hooks.example@evil.example/", "https://evil.example#hooks.example",
    "https://user:pw@hooks.example/", "https://evil.example\\@hooks.example/",
    "https://hooks.example./", "//hooks.example/", "file:///etc/passwd", "gopher://hooks.example/",
    "ftp://hooks.example/", "unix:///run/x", "https://hooks.example\r\nX-A: b", "hooks.example", "",
]  # fmt: skip
# What a name of a model or dataset may not be.
PATHS = [
    "http://169.254.169.254/latest", "https://evil.example/m", "file:///etc/passwd", "/etc/passwd",
    "../models/tiny", "org/../..", "org/m/x", "local:../tiny", "local:/etc", "local:tiny/../x",
    "\\\\host\\share", "~/m", "$HOME", "org/m@http://evil.example", "org/m@../../x", "org/m@/x",
    "s3://bucket/key", "hf://org/m", "upload:../x", "ds_../../x", ".", "..", "tiny\0", "org/.m",
]  # fmt: skip


@pytest.fixture(scope="module")
def served(settings):
    """A service with one receiver of webhooks, and a hub that notes whatever it is asked."""
    with hostile_hub() as hub:
        told = {"hub_endpoint": hub.url, "webhook_hosts": "hooks.example"}
        app = create_app(settings.model_copy(update=told))
        with TestClient(app, raise_server_exceptions=False) as http:
            yield http, hub


@pytest.mark.parametrize("route", SUBMISSIONS, ids=str)
def test_only_listed_receivers_are_ever_called(served, route: Route):
    """By scheme, host and port; the list is told, and nothing is queued."""
    http, hub = served
    before = http.get("/jobs").json()["data"]
    for address in ADDRESSES:
        body = route.body | {"base_model": "local:tiny", "dataset": INLINE, "webhook": address}
        answer = http.post(route.url(), json=body)

        assert (answer.status_code, answer.json()["code"]) in {
            (403, "webhook_not_allowed"), (422, "validation_failed"),
        }, address  # fmt: skip
    assert http.get("/jobs").json()["data"] == before
    assert hub.requests == []


@pytest.mark.parametrize("route", SUBMISSIONS, ids=str)
def test_no_name_is_an_address_or_a_path(served, route: Route):
    """Of a model or a dataset, in short and in full; the hub is not asked for it."""
    http, hub = served
    for name in PATHS:
        for field, value in forms(name):
            body = {"base_model": "local:tiny", "dataset": INLINE, "budget": 8} | {field: value}
            answer = http.post(route.url(), json=body)

            assert answer.status_code in {404, 422, 424}, (field, value, answer.text)
    assert hub.requests == []


def forms(name: str) -> list[tuple[str, Any]]:
    """Every way to write a name as a model or a dataset."""
    return [
        ("base_model", name),
        ("base_model", {"source": "hub", "id": name}),
        ("base_model", {"source": "local", "name": name}),
        ("dataset", name),
        ("dataset", {"source": "hub", "id": name}),
        ("dataset", {"source": "local", "name": name}),
        ("dataset", {"source": "upload", "id": name}),
    ]


def test_there_is_no_other_field_for_an_address():
    """Of all that can be sent, webhook alone is one."""
    found = {
        name
        for schema in DOCUMENT["components"]["schemas"].values()
        if schema.get("additionalProperties") is False
        for name in schema.get("properties", {})
        if any(
            word in name.lower()
            for word in ("url", "uri", "href", "hook", "host", "endpoint", "path")
        )
    }

    assert found == {"webhook"}
