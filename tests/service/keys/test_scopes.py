"""Nobody does what his key does not allow: every route, as the service describes it."""

import re

import pytest

from fimlora_contract.keys import Scope
from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from support.keys import OPEN_ROUTES, routes

SCHEMA = create_app(Settings()).openapi()
GUARDED = [
    (method, path, Scope(operation["security"][0]["api_key"][0]))
    for method, path, operation in routes(SCHEMA)
    if path not in OPEN_ROUTES
]
NAMES = [f"{method} {path}" for method, path, _ in GUARDED]


def filled(path: str) -> str:
    return re.sub(r"{\w+}", "x", path)


def test_every_route_states_one_scope():
    """But for those that tell whether the service lives, and which it is."""
    unguarded = {path for _, path, operation in routes(SCHEMA) if "security" not in operation}

    assert unguarded == OPEN_ROUTES
    for _, path, operation in routes(SCHEMA):
        if path not in OPEN_ROUTES:
            [requirement] = operation["security"]
            assert list(requirement) == ["api_key"]
            assert len(requirement["api_key"]) == 1
            assert {"401", "403"} <= set(operation["responses"]), path


@pytest.mark.parametrize("prefix", ["", "/v1"])
class TestEveryRoute:
    def test_lets_nobody_in_without_a_key(self, http, prefix):
        """A challenge, whatever the body says, and no word of whether anything is there."""
        for method, path, _ in GUARDED:
            answer = http.request(method, prefix + filled(path), content=b"{no json")

            assert answer.status_code == 401, (method, path)
            assert answer.json()["code"] == "unauthenticated"
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")

    def test_lets_nobody_in_with_a_wrong_key(self, http, prefix):
        """Also one that looks like a key, and it is not repeated."""
        wrong = f"fl_{'0' * 16}_{'A' * 43}"
        for method, path, _ in GUARDED:
            headers = {"Authorization": f"Bearer {wrong}"}
            answer = http.request(method, prefix + filled(path), headers=headers)

            assert answer.status_code == 401, (method, path)
            assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
            assert wrong not in answer.text

    def test_refuses_all_other_scopes(self, visitor, prefix):
        """The one that is missing is named."""
        ordinary = {Scope.READ, Scope.SUBMIT, Scope.CANCEL}
        without = {
            scope: visitor(scopes=sorted(ordinary - {scope})) for scope in (*ordinary, "admin")
        }
        for method, path, scope in GUARDED:
            answer = without[scope](method, prefix + filled(path), content=b"{no json")

            assert answer.status_code == 403, (method, path)
            assert answer.json()["code"] == "forbidden"
            assert f"scope {scope};" in answer.json()["detail"]

    def test_lets_in_who_has_its_scope(self, visitor, prefix):
        """Alone, or admin, which includes it."""
        admin = visitor(scopes=["admin"])
        having = {scope: visitor(scopes=[scope]) for scope in Scope}
        for method, path, scope in GUARDED:
            for who in (admin, having[scope]):
                answer = who(method, prefix + filled(path))

                assert answer.status_code not in {401, 403}, (method, path)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic Zm9vOmJhcg==",
        "Bearer fl_",
        "Bearer fl_x_y",
        "Bearer \xff",
    ],
)
def test_what_is_no_key_is_refused(http, header):
    """With a challenge, not with a fault."""
    answer = http.get("/jobs", headers=[(b"authorization", header.encode("latin-1"))])

    assert answer.status_code == 401


def test_two_keys_are_refused(http, visitor):
    """Nobody knows which one a proxy in between has looked at."""
    header = visitor().headers["Authorization"]

    answer = http.get("/jobs", headers=[("authorization", header)] * 2)

    assert answer.status_code == 401


def test_the_open_routes_need_no_key(http):
    """Probes of an orchestrator have none."""
    assert {http.get(path).status_code for path in OPEN_ROUTES} == {200}
