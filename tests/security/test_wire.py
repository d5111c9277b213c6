"""The real server on real addresses: who is served, and by which name."""

import pytest
from redis import Redis

from support.network import OTHER, Question, can_isolate, isolated_service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_isolate(), reason="this machine lets us make no network"),
]
LOCAL, KEY = "127.0.0.1", "a-key-of-the-operator-for-a-test"
GET = "GET /jobs HTTP/1.1\nHost: {}"


def statuses(service, *questions: Question) -> list[int]:
    return [answer.status for answer in service.ask(questions)]


@pytest.fixture(scope="module")
def service(tmp_path_factory, valkey_server):
    """Without keys, and with a proxy that it believes."""
    folder = tmp_path_factory.mktemp("wire")
    with Redis.from_url(valkey_server) as redis:
        redis.flushall()  # other tests' keys would close it
    with isolated_service(folder, valkey_server, FIMLORA_TRUSTED_PROXIES=OTHER) as running:
        yield running


def test_only_this_machine_is_served_without_keys(service):
    """The other address gets probes answered, and is told what to do."""
    local, other, probe, unknown = service.ask([
        Question(GET.format("localhost:8000")),
        Question(GET.format(f"{OTHER}:8000"), at=OTHER, to=OTHER),
        Question(f"GET /readyz HTTP/1.1\nHost: {OTHER}", at=OTHER, to=OTHER),
        Question(f"POST /calibrate HTTP/1.1\nHost: {OTHER}\nContent-Length: 9", at=OTHER, to=OTHER),
    ])  # fmt: skip

    assert local.status == 200
    assert (other.status, other.code) == (401, "unauthenticated")
    assert "fimlora keys create" in other.body
    assert probe.status == 200
    assert unknown.status == 401  # answered, although the body never came


@pytest.mark.parametrize("at", [LOCAL, OTHER])
@pytest.mark.parametrize("claim", [LOCAL, "::1", "localhost", f"{LOCAL}, {LOCAL}", "unix:"])
def test_no_claim_makes_a_peer_local(service, at, claim):
    """Neither of a proxy that is believed, nor of one on this machine."""
    names = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Host")
    asked = [Question(f"{GET.format('localhost')}\n{name}: {claim}", at=at) for name in names]

    assert statuses(service, *(q for q in asked)) == [401] * 4


def test_it_is_called_by_its_own_names_alone(service):
    """Of the addresses the one that was connected to; of the names localhost."""
    asked = {
        "localhost": 200, "LOCALHOST.:8000": 200, "127.0.0.1": 200, "[::1]:8000": 200,
        "evil.example": 403, "evil.example:8000": 403, OTHER: 403, "": 403, "a@localhost": 403,
    }  # fmt: skip

    assert statuses(service, *(Question(GET.format(host)) for host in asked)) == list(
        asked.values()
    )
    assert statuses(service, Question(GET.format(OTHER), to=OTHER)) == [200]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET http://localhost:8000/jobs HTTP/1.1\nHost: localhost", 400),
        ("GET http://evil.example/jobs HTTP/1.1\nHost: localhost", 400),
        ("GET http://localhost/jobs HTTP/1.1\nHost: evil.example", 400),
        ("GET http://localhost@evil.example/jobs HTTP/1.1\nHost: localhost", 400),
        ("GET /jobs HTTP/1.0\nAccept: */*", 403),
        ("GET /jobs HTTP/1.1\nAccept: */*", 400),
        ("GET /jobs HTTP/1.1\nHost: localhost\nHost: localhost", 400),
        ("GET /jobs HTTP/1.1\nHost: localhost\nHost: evil.example", 400),
        ("OPTIONS * HTTP/1.1\nHost: localhost", 400),
        ("OPTIONS * HTTP/1.1\nHost: evil.example", 400),
        ("CONNECT evil.example:80 HTTP/1.1\nHost: evil.example:80", 400),
    ],
)
def test_other_ways_to_name_a_host(service, head, status):
    """A target of its own, none, several: the first is refused whatever it names."""
    assert statuses(service, Question(head)) == [status]


def test_the_start_says_whom_it_serves(service):
    """With a warning, as it listens to others."""
    log = service.log.read_text()

    assert '"level": "warning", "event": "access.this_machine"' in log
    assert "others are refused until there is a key" in log
    assert "Traceback" not in log


def test_with_a_key_others_are_served(tmp_path, valkey_server):
    """And nobody without, on this machine neither; the key is nowhere in the log."""
    with isolated_service(tmp_path, valkey_server, FIMLORA_ADMIN_KEY=KEY) as service:
        bearer = f"Authorization: Bearer {KEY}"
        found = statuses(
            service,
            Question(f"{GET.format(OTHER)}\n{bearer}", at=OTHER, to=OTHER),
            Question(f"{GET.format(OTHER)}\n{bearer}x", at=OTHER, to=OTHER),
            Question(GET.format("localhost")),
            Question(f"{GET.format('evil.example')}\n{bearer}", at=OTHER, to=OTHER),
        )

    assert found == [200, 401, 401, 403]
    assert KEY not in service.log.read_text()
