"""By which names the service answers, whatever a client writes into the Host header."""

import asyncio

import pytest

from fimlora_service.addresses import host_patterns
from fimlora_service.app import create_app
from fimlora_service.http.hosts import HostMiddleware
from support.testclient import TestClient

BODY = b"x" * 500_000  # more than is taken
ALLOWED = host_patterns("fimlora.example, *.cluster.local, 192.0.2.7, [2001:DB8::7]")


def status_of(hosts: list[str], *, at: str = "127.0.0.1") -> int:
    """Status of a request that names these hosts, and came to an address of ours."""
    return asyncio.run(ask(hosts, at=at))


async def ask(hosts: list[str], *, at: str) -> int:
    seen: list[int] = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        seen.append(message.get("status"))

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/jobs",
        "query_string": b"",
        "headers": [(b"host", host.encode("latin-1")) for host in hosts],
        "server": (at, 8000),
        "client": ("127.0.0.1", 1),
    }
    await HostMiddleware(app, allowed=ALLOWED)(scope, None, send)
    return seen[0]


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "localhost.", "localhost:8000", "localhost:", "127.0.0.1",
        "127.0.0.1:9", "127.8.9.1", "[::1]", "[::1]:8000", "[::ffff:127.0.0.1]",
        "fimlora.example", "FIMLORA.example.:443", "a.cluster.local", "a.b.cluster.local:80",
        "192.0.2.7:8000", "[2001:db8:0::7]",
    ],
)  # fmt: skip
def test_our_names_are_served(host):
    """Loopback names in every spelling, and what the operator allows."""
    assert status_of([host]) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
        "evil.example.", "localhost..", "xlocalhost", "fimlora.example.evil", "cluster.local",
        "evilcluster.local", "localhost@evil.example", "evil.example@localhost", "user:pw@localhost",
        "localhost:evil", "localhost:99999", "localhost:8000:8000", "localhost, evil.example",
        "localhost evil", "localhost/evil", "localhost#", "localhost?", "[::1", "::1", "[localhost]",
        "[::1]evil", "[fe80::1]", "0.0.0.0", "[::]", "2130706433", "0x7f.1", "127.1", "192.0.2.8",
        "", " ", ".", "*", "\xe9vil", "l\xf6calhost", "a" * 5000,
    ],
)  # fmt: skip
def test_other_names_are_refused(host):
    """A name that only resolves to us, one that merely looks like ours, and what is no host."""
    assert status_of([host]) == 403


def test_the_address_that_a_request_came_to_is_ours():
    """Of a service that is bound to all addresses; another machine's is not."""
    assert status_of(["10.1.2.3:8000"], at="10.1.2.3") == 200
    assert status_of(["10.1.2.3"], at="::ffff:10.1.2.3") == 200
    assert status_of(["[fd00::0:5]"], at="fd00::5") == 200
    assert status_of(["10.1.2.4"], at="10.1.2.3") == 403
    assert status_of(["evil.example"], at="10.1.2.3") == 403
    assert status_of(["evil.example"], at="evil.example") == 403  # not by its name


@pytest.mark.parametrize(
    "hosts", [[], ["localhost", "localhost"], ["localhost", "evil.example"]]
)
def test_it_takes_exactly_one_host(hosts):
    """Two readers may each believe another one of several."""
    assert status_of(hosts) == 403


def test_a_refusal_is_a_problem_document(http):
    """With the name that was given, an id and no word of what else is allowed."""
    answer = http.get("/version", headers={"Host": "evil.example"})

    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem["code"]) == (403, "host_not_allowed")
    assert "'evil.example'" in problem["detail"]
    assert answer.headers["x-request-id"] == problem["request_id"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_is_done_for_another_name(http):
    """On any route and by any method, before a body is read."""
    answers = {
        http.request(method, path, headers={"Host": "evil.example"}, content=BODY).status_code
        for method in ("GET", "HEAD", "POST", "OPTIONS", "DELETE", "TRACE")
        for path in ("/healthz", "/docs", "/jobs", "/nowhere", "/datasets")
    }

    assert answers == {403}


def test_the_operator_adds_names(settings):
    """Those of the setting, and the name that the service is bound to."""
    more = settings.model_copy(update={"allowed_hosts": "*.a.example", "host": "box.lan"})
    with TestClient(create_app(more)) as http:
        statuses = [
            http.get("/healthz", headers={"Host": host}).status_code
            for host in ("x.a.example", "box.lan:8000", "a.example", "localhost")
        ]

    assert statuses == [200, 200, 403, 200]
