"""Who is answered without a key: this machine, and nobody who comes through a proxy."""

import pytest

from fimlora_service.http.peers import is_local
from support.testclient import TestClient

OPEN = ["/healthz", "/readyz", "/version", "/v1/healthz"]
ASKED = [
    ("GET", "/jobs"), ("POST", "/calibrate"), ("DELETE", "/v1/jobs/job_0"), ("POST", "/keys"),
    ("GET", "/metrics"), ("POST", "/datasets"),
]  # fmt: skip
LOCAL = ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"]
REMOTE = ["10.0.0.5", "192.0.2.1", "::ffff:10.0.0.5", "fd00::1", "0.0.0.0", "testclient", ""]
FORWARDED = ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host"]


def from_peer(http, peer, headers=None):
    """Another client of the running app, elsewhere."""
    other = TestClient(
        http.app, client=(peer, 5), headers=headers, raise_server_exceptions=False
    )
    other.app_state.update(http.app_state)
    return other


def test_this_machine_is_answered(http):
    """By any of its own addresses."""
    for peer in LOCAL:
        assert from_peer(http, peer).get("/jobs").status_code == 200, peer


def test_another_machine_is_told_how_to_get_a_key(http):
    """On every route, before a body is read."""
    for peer in REMOTE:
        other = from_peer(http, peer)
        for method, path in ASKED:
            answer = other.request(method, path, content=b"{" * 500_000)
            problem = answer.json()

            assert (answer.status_code, problem["code"]) == (401, "unauthenticated"), peer
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "fimlora keys create" in problem["next_step"]


def test_probes_are_answered_from_anywhere(http):
    """They tell nothing that is anybody's."""
    for path in OPEN:
        assert from_peer(http, "10.0.0.5").get(path).status_code == 200, path


def test_what_came_through_a_proxy_is_from_elsewhere(http):
    """Even from a proxy on this machine, and whatever it claims."""
    for name in FORWARDED:
        for value in ("127.0.0.1", "10.0.0.5", "for=127.0.0.1", ""):
            for peer in ("127.0.0.1", "10.0.0.5"):
                answer = from_peer(http, peer, {name: value}).get("/jobs")

                assert answer.status_code == 401, (name, value, peer)


@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [
        (None, ("/run/fimlora.sock", None), True),
        (None, ("", None), True),
        (None, ("127.0.0.1", 8000), False),  # a peer that is gone already
        (None, None, False),
        (("127.0.0.1", 5), ("10.0.0.1", 8000), True),
    ],
)
def test_a_unix_socket_is_this_machine(client, server, expected):
    """Who may open it is for file permissions to say; a peer without address is nobody."""
    assert is_local({"headers": [], "client": client, "server": server}) is expected
