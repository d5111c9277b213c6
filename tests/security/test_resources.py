"""Unrestricted resource consumption (OWASP API4): what one request may cost, on every route."""

import time

import pytest

from security.conftest import MAX_BODY, MAX_UPLOAD
from security.routes import JSON, ROUTES, Route, taking

BLOWN_UP = [
    b"[" * 90_000 + b"]" * 90_000,
    b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    b'{"budget": ' + b"9" * 100_000 + b"}",
]


@pytest.mark.parametrize("route", taking(), ids=str)
def test_a_body_over_the_limit_is_refused(http, route: Route):
    """By its declared length and by what really comes."""
    limit = MAX_BODY if JSON in route.media_types else MAX_UPLOAD
    kind = {"Content-Type": next(iter(route.media_types))}

    def chunks():
        yield from (b" " * 50_000 for _ in range(limit // 50_000 + 2))

    for body in (b" " * (limit + 1), chunks()):
        answer = http.request(route.method, route.url(), content=body, headers=kind)

        assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize("route", taking(JSON), ids=str)
def test_a_body_cannot_blow_up_its_reader(http, route: Route):
    """Nested deeply, or a number of as many digits as fit."""
    for body in BLOWN_UP:
        answer = http.request(
            route.method, route.url(), content=body, headers={"Content-Type": JSON}
        )

        assert answer.status_code in {400, 404, 422}, body[:20]


def bounded() -> list[tuple[Route, dict]]:
    """Numbers in queries."""
    return [
        (route, parameter)
        for route in ROUTES
        for parameter in route.operation.get("parameters", [])
        if parameter["in"] == "query"
        and parameter["schema"].get("type") in {"integer", "number"}
    ]


@pytest.mark.parametrize(("route", "parameter"), bounded(), ids=str)
def test_a_number_in_a_query_has_an_end(http, route: Route, parameter):
    """Pages and waits are bounded, and beyond the bound refused."""
    highest = parameter["schema"]["maximum"]
    asked = {parameter["name"]: highest + 1}
    answer = http.get(route.url(), params=required(route) | asked)

    assert answer.status_code == 422
    assert parameter["name"] in answer.text


def required(route: Route) -> dict[str, str]:
    parameters = route.operation.get("parameters", [])
    return {p["name"]: "x" for p in parameters if p["in"] == "query" and p.get("required")}


@pytest.mark.parametrize("route", [r for r in ROUTES if r.parameters], ids=str)
def test_a_name_in_a_path_has_an_end(http, route: Route):
    """A long one is refused as quickly as a short one, and not repeated in full."""
    names = dict.fromkeys(route.parameters, "a" * 20_000)
    began = time.monotonic()
    answer = http.request(route.method, route.url(**names), json=route.body)

    assert answer.status_code in {404, 422}
    assert len(answer.content) < 5_000
    assert time.monotonic() - began < 5
