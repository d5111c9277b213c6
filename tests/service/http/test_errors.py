"""Every error is a problem document, whatever was sent."""

import errno
import gzip
import json
import logging
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from fimlora_service.app import create_app
from fimlora_service.settings import Settings
from support.testclient import TestClient

JSON = {"Content-Type": "application/json"}


def assert_problem(answer, status: int, code: str) -> dict:
    """The answer is a sound problem document; it is returned."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert (problem["status"], problem["type"]) == (status, f"/problems/{code}")
    assert problem["title"]
    assert problem["detail"]
    assert problem["next_step"]
    assert problem["request_id"] == answer.headers["X-Request-Id"]
    return problem


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "malformed_request"),
        (b"{", 400, "malformed_request"),
        (b"\xff\xfe{", 400, "malformed_request"),
        (b'"\xff"', 400, "malformed_request"),
        (b"[" * 100_000, 400, "malformed_request"),
        (b"9" * 5000, 400, "malformed_request"),
        (b"x" * 300_000, 413, "payload_too_large"),
        (b"null", 422, "validation_failed"),
        (b"[]", 422, "validation_failed"),
        (b"NaN", 422, "validation_failed"),
        (b"1e400", 422, "validation_failed"),
        (b'"\\ud800"', 422, "validation_failed"),
        (b'{"\\ud800": 1}', 422, "validation_failed"),
        (b'{"\\u0000": "\\u0000"}', 422, "validation_failed"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_body_that_is_no_request_is_refused(http, content, status, code):
    """4xx with a code, never 5xx."""
    assert_problem(http.post("/calibrate", content=content, headers=JSON), status, code)


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("budget", "eight", "body.budget"),
        ("budget", {"fraction": float("nan")}, "body.budget.fraction"),
        ("budget", {"fraction": 1e400}, "body.budget.fraction"),
        ("budget", {"rank": 10**400}, "body.budget.rank"),
        ("metadata", {"k": "\ud800"}, "body.metadata.k"),
        ("dataset", {"source": "url", "url": "http://x.example"}, "body.dataset"),
        ("secret_token", "hunter2", "body.secret_token"),
        ("webhook", "https://u:hunter2@x.example/", "body.webhook"),
        ("target_modules", ["a", 3], "body.target_modules"),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode(),
)
def test_a_wrong_field_is_named_but_not_repeated(http, body, field, value, path):
    """The path tells where, the message why, and no value comes back."""
    content = json.dumps(body | {field: value})

    problem = assert_problem(
        http.post("/calibrate", content=content, headers=JSON), 422, "validation_failed"
    )

    assert any(error["field"].startswith(path) for error in problem["errors"])
    assert "hunter2" not in json.dumps(problem)
    assert "x.example" not in json.dumps(problem)


@pytest.mark.parametrize(
    "row",
    [
        '{"text": "a", "label": NaN}',
        '{"text": "a", "label": 1e400}',
        '{"text": "\\ud800", "label": 0}',
        '{"text": "a", "label": 0, "\\udfff": 0}',
        '{"text": "a", "label": 0, "x": ' + "[" * 150 + "]" * 150 + "}",
        '{"text": 5, "label": 0}',
        '{"text": "a"}',
        '{"text": "a", "label": [1]}',
        '{"text": "a", "label": "zero"}',
    ],
)
def test_an_inline_row_that_cannot_be_used_is_named(http, body, row):
    """Rows in the request are checked like uploaded ones."""
    rows = f'[{{"text": "a", "label": 0}}, {{"text": "b", "label": 1}}, {row}]'
    content = json.dumps(body | {"dataset": "ROWS"}).replace(
        '"ROWS"', f'{{"source": "inline", "rows": {rows}}}'
    )

    answer = http.post("/calibrate", content=content, headers=JSON)

    assert answer.status_code in {202, 422}
    if "[[[" not in row:  # deep but readable: beside the columns in use it does no harm
        problem = assert_problem(answer, 422, answer.json()["code"])
        assert "row 3" in problem["detail"] or "rows[2]" in json.dumps(problem["errors"])


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", ""]
)
def test_another_content_type_is_refused(http, content_type):
    """415 names what is expected."""
    answer = http.post("/calibrate", content=b"{}", headers={"Content-Type": content_type})

    assert "application/json" in assert_problem(answer, 415, "unsupported_media_type")["detail"]


def test_a_compressed_body_is_refused_as_such(http):
    """It is JSON, but not as it comes."""
    headers = JSON | {"Content-Encoding": "gzip"}

    answer = http.post("/calibrate", content=gzip.compress(b"{}"), headers=headers)

    problem = assert_problem(answer, 415, "unsupported_media_type")
    assert "content encoding 'gzip'; send it plain" in problem["detail"]


@pytest.mark.parametrize("path", ["/nope", "/jobs/", "/v1", "/v2/jobs", "/jobs/a/b/c/d"])
def test_an_unknown_route_is_a_problem(http, path):
    """404."""
    assert_problem(http.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/datasets", "GET, HEAD, POST"),
        ("PUT", "/jobs/x", "DELETE, GET, HEAD"),
        ("PATCH", "/datasets/x", "DELETE, GET, HEAD"),
        ("PUT", "/estimate", "POST"),
        ("POST", "/workers", "GET, HEAD"),
        ("GET", "/calibrate", "POST"),
        ("GET", "/v1/calibrate", "POST"),
    ],
)
def test_another_method_is_told_the_allowed_ones(http, method, path, allowed):
    """405 with a complete Allow header."""
    answer = http.request(method, path)

    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == allowed


@pytest.mark.parametrize("given", ["abc-1.2_3", "", "a b", "x" * 65, "<script>"])
def test_every_answer_has_a_request_id(http, given):
    """The client's if it is harmless, else a fresh one."""
    answer = http.get("/healthz", headers={"X-Request-Id": given})

    assert (answer.headers["X-Request-Id"] == given) is (given == "abc-1.2_3")


def test_a_bug_shows_a_request_id_and_no_traceback(app, http, caplog):
    """The user gets an id to report, the operator finds the traceback under it."""

    @app.get("/bug")
    def bug() -> None:
        raise KeyError("secret detail")

    with caplog.at_level(logging.ERROR):
        answer = http.get("/bug")

    problem = assert_problem(answer, 500, "internal")
    assert "secret" not in json.dumps(problem)
    assert "secret detail" in caplog.text


def test_a_full_disk_has_its_own_code(app, http):
    """The operator can do something about it, the user cannot."""

    @app.get("/full")
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert_problem(http.get("/full"), 507, "disk_full")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/jobs"),
        ("GET", "/workers"),
        ("POST", "/estimate"),
        ("GET", "/jobs/job_0"),
        ("GET", "/jobs/job_0?wait=5"),
        ("GET", "/jobs/job_0/events"),
        ("POST", "/jobs/job_0/cancel"),
        ("POST", "/calibrate"),
    ],
)
def test_without_redis_the_client_is_asked_to_come_again(settings, body, method, path):
    """503 with Retry-After, and fast."""
    gone = settings.model_copy(update={"redis_url": "unix:///tmp/fimlora-no-such-socket"})
    with TestClient(create_app(gone), raise_server_exceptions=False) as http:
        answer = http.request(
            method, path, json=body if path in {"/calibrate", "/estimate"} else None
        )

    assert_problem(answer, 503, "redis_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.elapsed.total_seconds() < 2.5  # redis-py left to itself tries for 2.9 s


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory, valkey_server):
    """One app for all examples of the fuzz test."""
    with Redis.from_url(valkey_server) as redis:
        redis.flushall()
    settings = Settings(
        redis_url=valkey_server,
        data_dir=tmp_path_factory.mktemp("data"),
        hub_endpoint="http://127.0.0.1:9",
        hub_token=None,
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats()
    | st.text(st.characters(), max_size=8)  # with surrogates and null characters
    | st.sampled_from(["hub", "local", "inline", "upload", "a/b", "ds_" + "0" * 32, "rank"])
)  # fmt: skip
names = st.sampled_from([
    "base_model", "dataset", "budget", "source", "id", "name", "rows", "columns", "text",
    "label", "rank", "fraction", "calibration", "allocation", "adapter", "metadata", "force",
    "target_modules", "r_min", "r_max", "revision",
]) | st.text(st.characters(), max_size=4)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
    max_leaves=20,
)
requests = st.fixed_dictionaries(
    {
        "base_model": values | st.just("tiny") | st.just("a/b"),
        "dataset": values
        | st.fixed_dictionaries(
            {
                "source": st.just("inline"),
                "rows": st.lists(st.dictionaries(names, values, max_size=4), max_size=3),
            }
        ),
        "budget": values | st.integers(1, 8),
    },
    optional={
        "calibration": values,
        "allocation": values,
        "target_modules": values,
        "webhook": values | st.just("https://a.example"),
        "deadline_s": values | st.floats(),
        "priority": values | st.just("high"),
        "validate_only": st.booleans(),
    },
)


@hypothesis_settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.one_of(requests, values))
def test_no_json_body_is_answered_with_a_fault(fuzzed, value):
    """Whatever JSON is sent: a client error, or the hub that is not there."""
    content = json.dumps(value)

    for path in ("/calibrate", "/estimate"):
        answer = fuzzed.post(path, content=content, headers=JSON)

        assert answer.status_code < 500 or answer.json()["code"] == "hub_unreachable"


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["/calibrate", "/estimate", "/datasets"]))
def test_no_bytes_are_answered_with_a_fault(fuzzed, content, path):
    """Bytes that are no JSON, no JSONL, no UTF-8."""
    type_ = "application/x-ndjson" if path == "/datasets" else "application/json"

    answer = fuzzed.post(path, content=content, headers={"Content-Type": type_})

    assert answer.status_code < 500


parts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
paths = [
    "/jobs/{}", "/jobs/{}/events", "/jobs/{}/result", "/jobs/{}/artifacts/{}", "/{}/{}",
    "/datasets/{}", "/workers?{}", "/jobs?cursor={}&limit={}", "/jobs/job_0?wait={}", "/jobs/job_0/events?after={}",
]  # fmt: skip


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(paths), parts, parts, st.text(st.characters(max_codepoint=255), max_size=9)
)
def test_no_address_is_answered_with_a_fault(fuzzed, path, first, second, header):
    """Any text in a path, a query or a header."""
    url = path.format(quote(first, safe=""), quote(second, safe=""))
    headers = {
        name: header.encode("latin-1")
        .replace(b"\r", b"")
        .replace(b"\n", b"")
        .replace(b"\0", b"")
        for name in ("Last-Event-ID", "X-Request-Id", "If-None-Match", "Accept", "Prefer")
    }

    answer = fuzzed.get(url, headers=headers)

    assert answer.status_code < 500


@pytest.mark.parametrize("route", ["/estimate", "/calibrate"])
def test_inline_rows_without_any_text_are_refused(http, body, route):
    """Before anything is queued; and rows without columns have a sentence of their own."""

    def answered(*rows):
        dataset = {"source": "inline", "rows": list(rows)}
        return http.post(route, json=body | {"dataset": dataset})

    blank = answered({"text": "", "label": 0}, {"text": "  ", "label": 1})
    bare = answered({})

    assert (blank.status_code, blank.json()["code"]) == (422, "dataset_schema")
    assert "all 2 rows are blank" in blank.json()["detail"]
    assert bare.status_code == 422
    assert "the rows have no columns" in bare.json()["detail"]
    assert answered({"text": "", "label": 0}, {"text": "so", "label": 1}).is_success
