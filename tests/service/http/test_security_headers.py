"""What every answer tells a browser not to do."""

import pytest
from starlette.datastructures import MutableHeaders

from fimlora_service.app import create_app
from fimlora_service.http.security_headers import protect
from support.testclient import TestClient

ANSWERS = [
    ("GET", "/healthz"), ("GET", "/jobs"), ("GET", "/openapi.json"), ("GET", "/metrics"),
    ("GET", "/nowhere"), ("POST", "/healthz"), ("POST", "/calibrate"), ("HEAD", "/jobs"),
    ("GET", "/jobs/job_0"), ("GET", "/docs"), ("GET", "/"), ("OPTIONS", "/jobs"),
]  # fmt: skip


def check(headers) -> None:
    policy = headers["content-security-policy"]

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["cache-control"]
    assert "public" not in headers["cache-control"]
    assert len(headers.get_list("content-security-policy")) == 1


def test_every_answer_has_them(http):
    """Data, refusals, unknown routes and the pages of the reference."""
    for method, path in ANSWERS:
        check(http.request(method, path).headers)


def test_a_fault_of_the_service_has_them_too(settings):
    """Answered outside of everything that surrounds a request."""
    app = create_app(settings)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("a fault")

    with TestClient(app, raise_server_exceptions=False) as http:
        answer = http.get("/broken")

    assert answer.status_code == 500
    check(answer.headers)


def test_a_result_is_kept_by_who_asked_for_it_and_opens_without_scripts(http, job_id, succeed):
    """Its files never change, but are not everybody's."""
    succeed(job_id)
    file = http.get(f"/jobs/{job_id}/artifacts/adapter_config.json")
    listed = http.get(f"/jobs/{job_id}")

    check(file.headers)
    assert file.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert file.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in file.headers["content-security-policy"]
    assert listed.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "image/svg+xml", "TEXT/HTML"])
def test_a_report_or_picture_runs_no_script(kind):
    """Its styles and embedded pictures are shown, all else is off."""
    headers = MutableHeaders({"content-type": kind})

    protect(headers)
    policy = headers["content-security-policy"]

    assert "sandbox" in policy.split("; ")  # without allow-scripts
    assert "script-src" not in policy
    assert "style-src 'unsafe-inline'" in policy


def test_the_reference_loads_from_here_only(http):
    """It works without a network: no other origin is named, and none allowed."""
    page = http.get("/docs")
    policy = page.headers["content-security-policy"]

    assert "https://" not in page.text + policy
    assert "script-src 'self';" in policy
    assert "connect-src 'self'" in policy
