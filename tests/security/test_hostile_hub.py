"""Unsafe consumption of APIs (OWASP API10): whatever the hub answers, nobody but the hub looks bad."""

import gzip
import json
import resource
from typing import Any

import pytest
from pydantic import SecretStr

from fimlora_service.app import create_app
from support.hostile_hub import HostileHub, hostile_hub
from support.service import ROWS
from support.testclient import TestClient

KIND = {"Content-Type": "application/json"}
TOKEN = "hf_only_for_the_hub"
FILES = [
    {"rfilename": "model.safetensors", "size": 10},
    {"rfilename": "config.json", "size": 5},
]
ASKED = [
    {"base_model": "org/m", "dataset": {"source": "inline", "rows": ROWS}, "budget": 8},
    {"base_model": "local:tiny", "dataset": "org/m", "budget": 8},
]
MIB = 1 << 20


def info(**fields: Any) -> bytes:
    """A description of a repository as the hub gives it, but for some fields."""
    sound = {
        "id": "org/m", "sha": "a" * 40, "siblings": FILES, "private": False, "gated": False,
        "tags": [], "lastModified": "2024-01-01T00:00:00.000Z",
    }  # fmt: skip
    return json.dumps(sound | fields).encode()


def files(*names: Any, size: Any = 5) -> bytes:
    return info(siblings=[*FILES, *({"rfilename": name, "size": size} for name in names)])


UNREADABLE = {
    "nothing": b"", "a page": b"<html>", "null": b"null", "a list": b"[]", "a number": b"5",
    "a text": b'"x"', "deep": b"[" * 200_000, "no UTF-8": b'{"id": "\xff"}',
    "no commit": info(sha=None), "a number as commit": info(sha=5), "a map": info(sha={}),
    "a path as commit": info(sha="../../../etc"), "a short commit": info(sha="abc"),
    "files: a text": info(siblings="x"), "files: a number": info(siblings=5),
    "files: nothing": info(siblings=[None]), "files: no names": info(siblings=[{}]),
    "a file above": files("../../x.json"), "a file elsewhere": files("/etc/passwd"),
    "a file with NUL": files("a\0.json"), "a file of Windows": files("..\\x"),
    "a number as name": files(5), "a text as size": files("x", size="big"),
    "less than nothing": files("x", size=-1), "more than there is": files("x", size=10**30),
    "half a byte": files("x", size=0.5), "true": files("x", size=True),
    "no date": info(lastModified="yesterday"), "a number as date": info(lastModified=5),
}  # fmt: skip
ODD: dict[str, tuple[int, dict[str, str], bytes]] = {
    "empty": (204, {}, b""),
    "fault": (500, KIND, b"{}"),
    "too many": (429, {"Retry-After": "99999999999"}, b""),
    "gateway": (502, {}, b"<html>"),
    "loop": (302, {"Location": "/again"}, b""),
    "file": (302, {"Location": "file:///etc/passwd"}, b""),
    "gopher": (302, {"Location": "gopher://127.0.0.1:6379/_FLUSHALL"}, b""),
    "no address": (302, {"Location": "http://[::1"}, b""),
    "closed port": (302, {"Location": "http://127.0.0.1:1/x"}, b""),
    "no end": (200, KIND | {"Content-Length": "1000"}, b"{}"),
    "no gzip": (200, KIND | {"Content-Encoding": "gzip"}, b"plain"),
}


@pytest.fixture(scope="module")
def served(settings):
    """A service whose hub is hostile."""
    with hostile_hub() as hub:
        told = {"hub_endpoint": hub.url, "hub_token": SecretStr(TOKEN), "hub_timeout_s": 0.5}
        app = create_app(settings.model_copy(update=told))
        with TestClient(app, raise_server_exceptions=False) as http:
            yield http, hub


def ask(http: TestClient, hub: HostileHub, answer: tuple[int, dict[str, str], bytes]) -> list:
    """What is said of a model and of a dataset of that hub."""
    hub.status, hub.headers, hub.body = answer
    hub.requests.clear()
    return [http.post("/calibrate", json=body) for body in ASKED]


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_answer_that_cannot_be_is_the_hub_s_fault(served, what):
    """Of no type that was expected, or naming what no repository has; nothing is queued."""
    for answer in ask(*served, (200, KIND, UNREADABLE[what])):
        assert (answer.status_code, answer.json()["code"]) == (503, "hub_unreachable")
        assert "cannot be read" in answer.json()["detail"]
        assert TOKEN not in answer.text


@pytest.mark.parametrize("what", ODD)
def test_a_fault_or_a_wrong_turn_of_the_hub_is_its_own(served, what):
    """Faults, redirects to files, other protocols and in circles, bodies that lie."""
    for answer in ask(*served, ODD[what]):
        assert (answer.status_code, answer.json()["code"]) == (503, "hub_unreachable")
        assert TOKEN not in answer.text
    assert len(served[1].requests) <= 50


@pytest.mark.parametrize("status", [401, 403])
def test_a_hub_that_wants_more_is_told_of_as_such(served, status):
    """Not as a fault of the caller's own key."""
    answers = ask(*served, (status, KIND, b"{}"))

    assert [answer.status_code for answer in answers] == [424, 424]


def test_a_compressed_answer_is_not_unpacked(served):
    """A gigabyte in a megabyte: no more memory than it had."""
    bomb = gzip.compress(b" " * (300 * MIB), compresslevel=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers = ask(*served, (200, KIND | {"Content-Encoding": "gzip"}, bomb))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert [answer.status_code for answer in answers] == [503, 503]
    assert grown < 100 << 10  # KiB; the bomb itself was made before


def test_a_file_is_no_longer_than_what_was_asked_for(served):
    """A hub that sends all of it in place of a part."""
    http, hub = served
    body = info()  # what every question gets: the head of the weights, too
    sound = {"X-Repo-Commit": "a" * 40, "ETag": '"x"'}
    answers = ask(http, hub, (200, KIND | sound, body + b" " * 300_000))

    assert answers[0].status_code in {422, 503}
    assert answers[0].json()["code"] in {
        "unsafe_weights",
        "hub_unreachable",
        "unsupported_architecture",
    }


def test_the_token_goes_to_the_hub_alone(served):
    """A redirect to another machine takes none along."""
    http, hub = served
    with hostile_hub() as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        ask(http, hub, (302, {"Location": f"{elsewhere}/x"}, b""))

        assert {key for _, key in hub.requests} == {f"Bearer {TOKEN}"}
        assert {key for _, key in other.requests} == {None}
