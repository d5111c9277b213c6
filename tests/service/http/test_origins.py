"""What a browser may send, and for whose pages."""

import pytest

from fimlora_service.app import create_app
from support.testclient import TestClient

UI = "https://ui.example.com"
OWN = {"Origin": "http://localhost"}
UNSAFE = [
    ("POST", "/calibrate"), ("POST", "/jobs/job_0/cancel"), ("POST", "/jobs/job_0/retry"),
    ("DELETE", "/jobs/job_0"), ("PUT", "/rank-patterns/a/b"), ("POST", "/datasets"),
    ("POST", "/cache/evict"), ("PATCH", "/nowhere"), ("BREW", "/jobs"),
]  # fmt: skip

FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://localhost:9999"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://localhost@evil.example"},
    {"Origin": "file://"},
    {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "nonsense"},
    {"Sec-Fetch-Site": "cross-site", "Authorization": "Basic eDp5"},  # browsers keep those
]
OURS = [
    {},
    OWN,
    {"Origin": "HTTP://LOCALHOST:80"},
    {"Origin": "https://localhost"},  # a proxy may have ended TLS
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    # Behind a proxy with another name, the browser knows better than we do.
    {"Sec-Fetch-Site": "same-origin", "Origin": UI},
    {"Origin": "http://evil.example", "Authorization": "Bearer fl_x_y"},
]


def code_of(answer) -> str:
    return answer.json().get("code", "")


def test_a_page_of_another_origin_does_nothing(http):
    """Whatever the method and route, and before the body is read."""
    for headers in FOREIGN:
        for method, path in UNSAFE:
            answer = http.request(method, path, headers=headers, content=b"x" * 500_000)

            assert answer.status_code == 403, (headers, path)
            assert code_of(answer) == "origin_not_allowed"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_form_of_another_page_cannot_submit(http, body, kind):
    """A body that is JSON by accident, sent without a preflight."""
    headers = {"Content-Type": kind, "Origin": "http://evil.example"}

    assert http.post("/calibrate", json=body, headers=headers).status_code == 403
    assert http.post("/calibrate", json=body, headers={"Content-Type": kind}).status_code == 415


def test_tools_own_pages_and_keys_pass(http):
    """What is no browser, what is sent by a page of ours, and what a page could not add."""
    for headers in OURS:
        answer = http.post("/jobs/job_0/cancel", headers=headers)

        assert code_of(answer) != "origin_not_allowed", headers


def test_reading_does_nothing_and_is_not_refused(http):
    """A page of another origin gets no answer to read: no header lets it."""
    answer = http.get("/jobs", headers={"Origin": "http://evil.example"})

    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_no_preflight_succeeds_by_default(http):
    """So that no page can add a header or send JSON."""
    answer = preflight(http, "http://evil.example")

    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


def preflight(http, origin):
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    return http.options("/calibrate", headers=headers)


def test_pages_of_allowed_origins_are_served_and_no_others(settings):
    """Preflight, request and answer; without credentials that a browser keeps."""
    more = settings.model_copy(update={"allowed_origins": f"{UI}:443, http://localhost:3000"})
    with TestClient(create_app(more), raise_server_exceptions=False) as http:
        asked, refused = preflight(http, UI), preflight(http, "http://evil.example")
        headers = {"Origin": UI, "Sec-Fetch-Site": "cross-site"}
        done = http.post("/jobs/job_0/cancel", headers=headers)
        evil = http.post("/jobs/job_0/cancel", headers=headers | {"Origin": f"{UI}.evil"})
        rebound = preflight_of(http, UI, host="evil.example")

    assert asked.headers["access-control-allow-origin"] == UI
    assert "access-control-allow-credentials" not in asked.headers
    assert "access-control-allow-origin" not in refused.headers
    assert (done.status_code, done.headers["access-control-allow-origin"]) == (404, UI)
    assert "Location" in done.headers["access-control-expose-headers"]
    assert (evil.status_code, code_of(evil)) == (403, "origin_not_allowed")
    assert rebound.status_code == 403


def preflight_of(http, origin, *, host):
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Host": host}
    return http.options("/calibrate", headers=headers)
