"""Improper inventory management (OWASP API9): nothing is served that is not described."""

import pytest
from fastapi.routing import iter_route_contexts

from fimlora_service.app import create_app
from security.routes import DOCUMENT, ROUTES

# What describes the service and what its page is made of: no part of what is described.
REFERENCE = {"/openapi.json", "/docs", "/llms.txt", "/", "/assets/{name}"}


@pytest.fixture(scope="module")
def app(settings):
    return create_app(settings)


def test_what_is_served_is_what_the_document_has(app):
    """Each route under its path and under /v1, by one handler; and no other route or mount."""
    described = {(r.method, r.path, r.operation["operationId"]) for r in ROUTES}
    served = {
        (method, route.path, route.name)
        for route in iter_route_contexts(app.routes)
        for method in route.methods
        if route.path not in REFERENCE
    }

    again = {(method, f"/v1{path}", name) for method, path, name in described}
    assert served == described | again


def test_the_document_names_its_version():
    """Who reads it knows of what it speaks."""
    assert DOCUMENT["info"]["version"]
    assert all(route.operation["description"] for route in ROUTES)


def test_no_route_is_of_another_age(http):
    """Neither a version that is not there, nor what frameworks and tools leave behind."""
    for path in (
        "/v0/jobs", "/v2/jobs", "/V1/jobs", "/v1/v1/jobs", "/debug", "/admin", "/console", "/.env",
        "/.git/config", "/actuator", "/server-status", "/v1/docs", "/v1/openapi.json", "/static",
        "/jobs/", "/%2Fjobs", "/%2e%2e/etc/passwd",
    ):  # fmt: skip
        answer = http.get(path)

        assert answer.status_code == 404, path
        assert answer.json()["code"] in {"not_found", "job_not_found"}
