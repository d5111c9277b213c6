"""What the service logs of requests."""

import logging

import pytest

from fimlora_service.app import create_app
from support.testclient import TestClient


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/healthz"])
def test_watching_over_the_service_is_no_news(http, caplog, path):
    """Asked every few seconds, these lines would be most of the log."""
    caplog.set_level(logging.INFO)
    assert http.get(path).status_code == 200
    assert http.get("/version").status_code == 200

    done = [line for line in caplog.records if line.message == "request.done"]
    assert [line.path for line in done] == ["/version"]


def test_a_failed_health_check_is_news(settings, caplog):
    """Whoever reads the log later sees since when it failed."""
    caplog.set_level(logging.INFO)
    gone = settings.model_copy(update={"redis_url": "unix:///tmp/fimlora-no-such-socket"})
    with TestClient(create_app(gone)) as http:
        assert http.get("/readyz").status_code == 503

    (done,) = [line for line in caplog.records if line.message == "request.done"]
    assert (done.levelname, done.path, done.status) == ("WARNING", "/readyz", 503)
