"""Security misconfiguration (OWASP API8): methods, headers and errors of every route."""

import re
from pathlib import Path

import pytest

from security.routes import DOCUMENT, JSON, ROUTES, Route

METHODS = (
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "BREW",
)
ROOT = re.escape(str(Path(__file__).parents[2]))
TELLING = re.compile(
    rf"Traceback|File \"|\.py\b|{ROOT}|/tmp/|/home/|site-packages|0x[0-9a-f]{{8}}"
)
GARBLED = [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"{" * 5_000, b"1" * 5_000, b"NaN"]


def check_headers(answer, what: str) -> None:
    """What a browser is told, on whatever answer."""
    assert answer.headers["x-content-type-options"] == "nosniff", what
    assert answer.headers["referrer-policy"] == "no-referrer", what
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"], what
    assert answer.headers["cross-origin-resource-policy"] == "same-origin", what
    assert answer.headers["cache-control"], what
    assert "server" not in answer.headers, what
    assert not [name for name in answer.headers if name.startswith("access-control")], what
    assert "set-cookie" not in answer.headers, what


def check_problem(answer, what: str) -> None:
    """An error is a problem document that tells nothing of the inside."""
    assert answer.headers["content-type"] == "application/problem+json", what
    assert answer.json()["next_step"], what
    assert not TELLING.search(answer.text), (what, answer.text)


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_no_other_method_is_taken(http, path):
    """Each is refused with those that are; HEAD goes with GET."""
    known = {route.method for route in ROUTES if route.path == path}
    known |= {"HEAD"} & ({"HEAD"} if "GET" in known else set())
    url = next(route for route in ROUTES if route.path == path).url()
    for method in METHODS:
        if method not in known:
            answer = http.request(method, url)

            assert answer.status_code == 405, method
            assert set(answer.headers["allow"].split(", ")) >= known
            check_headers(answer, method)
            if method != "HEAD":
                check_problem(answer, method)


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_every_answer_has_the_headers_and_tells_nothing_of_the_inside(http, route: Route):
    """Of something that is not there, of garbled bodies, and of names that are none."""
    for prefix in ("", "/v1"):
        answers = [http.request(route.method, prefix + route.url(), json=route.body)]
        odd = dict.fromkeys(route.parameters, "..%2f..%2fetc%2fpasswd")
        answers.append(http.request(route.method, prefix + route.url(**odd), json=route.body))
        answers.append(http.request(route.method, f"{prefix}{route.url()}?no_such=1"))
        if route.media_types:
            kind = {"Content-Type": next(iter(route.media_types))}
            answers += [
                http.request(route.method, prefix + route.url(), content=body, headers=kind)
                for body in GARBLED
            ]
        for answer in answers:
            what = f"{route} {answer.status_code} {answer.text[:200]}"
            check_headers(answer, what)
            assert answer.status_code < 500 or answer.status_code == 503, what
            if answer.status_code >= 400 and route.path != "/readyz":
                check_problem(answer, what)


@pytest.mark.parametrize("route", [r for r in ROUTES if JSON in r.media_types], ids=str)
def test_a_json_body_says_that_it_is_one(http, route: Route):
    """What a form of another page could send is refused, whatever is in it."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = http.request(
            route.method, route.url(), json=route.body, headers={"Content-Type": kind}
        )

        assert answer.status_code == 415, kind
