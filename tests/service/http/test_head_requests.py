"""HEAD tells what GET would, without the body."""

import pytest


@pytest.mark.parametrize(
    "path", ["/jobs", "/jobs/{id}", "/models", "/healthz", "/openapi.json"]
)
def test_the_headers_are_those_of_get(http, job_id, path):
    """Size, type and tag included."""
    address = path.format(id=job_id)

    head, get = http.head(address), http.get(address)

    assert head.status_code == get.status_code == 200
    assert head.content == b""
    for name in ("Content-Length", "Content-Type", "ETag", "Cache-Control", "Retry-After"):
        assert head.headers.get(name) == get.headers.get(name)


def test_an_artefact_is_sized_without_being_sent(http, job_id, succeed):
    """Size and digest are enough to know whether to fetch it."""
    succeed(job_id)
    address = f"/jobs/{job_id}/artifacts/adapter_config.json"

    head, get = http.head(address), http.get(address)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(get.content))
    assert head.headers["ETag"] == get.headers["ETag"]


def test_a_copy_that_is_right_is_still_right(http, job_id):
    """Conditions hold for HEAD as for GET."""
    tag = http.head(f"/jobs/{job_id}").headers["ETag"]

    assert http.head(f"/jobs/{job_id}", headers={"If-None-Match": tag}).status_code == 304


def test_a_stream_is_left_where_it_begins(http, job_id):
    """The job is queued for ever here, and its stream as long."""
    answer = http.head(f"/jobs/{job_id}/events")

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"].startswith("text/event-stream")


def test_errors_have_their_status(http):
    """And no body either."""
    answer = http.head("/jobs/job_0")

    assert (answer.status_code, answer.content) == (404, b"")


def test_what_has_no_get_has_no_head(http):
    """405 names all that there is, HEAD where there is GET."""
    assert http.head("/calibrate").status_code == 405
    assert http.put("/jobs").headers["Allow"] == "GET, HEAD"
    assert http.put("/calibrate").headers["Allow"] == "POST"
