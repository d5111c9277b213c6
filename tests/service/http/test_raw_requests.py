"""Bytes that no sound client sends, to the real server: each is answered, and harms nobody."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from support.raw_http import Address, ask, ask_all
from support.service_process import running_service
from support.valkey import running_valkey

pytestmark = pytest.mark.slow
HOST = "Host: localhost\r\n"


class Service(NamedTuple):
    """A running service."""

    client: httpx2.Client
    address: Address
    log: Path

    def log_since(self, mark: int) -> str:
        return self.log.read_text()[mark:]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("service")
    with running_valkey() as url, running_service(data_dir, url) as (client, _):
        yield Service(client, (client.base_url.host, client.base_url.port), data_dir / "log")


def post(
    *fields: str, body: str = "", path: str = "/calibrate", kind: str = "application/json"
) -> str:
    """A request with a body and some fields of its own."""
    own = "".join(f"{field}\r\n" for field in fields)
    head = f"POST {path} HTTP/1.1\r\n{HOST}Content-Type: {kind}\r\n"
    return f"{head}{own}\r\n{body}"


def get(target: str, *fields: str, version: str = "HTTP/1.1", method: str = "GET") -> str:
    own = "".join(f"{field}\r\n" for field in fields)
    return f"{method} {target} {version}\r\n{HOST}{own}\r\n"


REFUSED = {
    "length-of-20-digits": (post("Content-Length: " + "9" * 20, body="{}"), 413),
    "length-of-20-digits-upload": (
        post("Content-Length: " + "9" * 20, body="a", path="/datasets", kind="text/csv"),
        413,
    ),
    "length-of-5000-digits": (post("Content-Length: " + "9" * 5000, body="{}"), 400),
    "length-negative": (post("Content-Length: -1", body="{}"), 400),
    "length-with-plus": (post("Content-Length: +2", body="{}"), 400),
    "length-in-hex": (post("Content-Length: 0x2", body="{}"), 400),
    "length-no-number": (post("Content-Length: two", body="{}"), 400),
    "length-empty": (post("Content-Length:", body="{}"), 400),
    "length-twice": (post("Content-Length: 2", "Content-Length: 3", body="{}"), 400),
    "length-listed": (post("Content-Length: 2, 3", body="{}"), 400),
    "length-and-chunked": (
        post("Content-Length: 2", "Transfer-Encoding: chunked", body="2\r\n{}\r\n0\r\n\r\n"),
        400,
    ),
    "encoding-unknown": (post("Transfer-Encoding: gzip", body="{}"), 400),
    "encoding-twice": (post("Transfer-Encoding: chunked, chunked", body="0\r\n\r\n"), 400),
    "encoding-obscured": (post("Transfer-Encoding: xchunked", body="0\r\n\r\n"), 400),
    "chunk-no-number": (post("Transfer-Encoding: chunked", body="zz\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk-negative": (post("Transfer-Encoding: chunked", body="-1\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk-too-long": (
        post("Transfer-Encoding: chunked", body="f" * 30 + "\r\n{}\r\n0\r\n\r\n"), 400
    ),
    "fields-too-many": (get("/healthz", *(f"X-{n}: 1" for n in range(101))), 400),
    "fields-far-too-many": (get("/healthz", *(f"X-{n}: 1" for n in range(20_000))), 400),
    "field-too-long": (get("/healthz", "X-Long: " + "a" * 20_000), 400),
    "field-far-too-long": (get("/healthz", "X-Long: " + "a" * 2_000_000), 400),
    "field-without-colon": (get("/healthz", "X-Nothing"), 400),
    "field-with-space": (get("/healthz", "X Y: 1"), 400),
    "field-with-nul": (get("/healthz", "X-Y: a\0b"), 400),
    "field-folded": (get("/healthz", "X-Y: a", " : b c", "  d: e"), 200),
    "target-too-long": (get("/jobs/" + "a" * 200_000), 400),
    "target-with-space": (get("/jobs/a b"), 400),
    "target-nul": (get("/jobs/%00"), 400),
    "target-nul-inside": (get("/datasets/local%00name"), 400),
    "target-newline": (get("/jobs/%0d%0aX-Injected:%201"), 400),
    "target-percent-alone": (get("/jobs/%"), 400),
    "target-percent-letters": (get("/jobs/%zz"), 400),
    "target-not-utf8": (get("/jobs/%ff%fe"), 400),
    "target-overlong-utf8": (get("/jobs/%c0%ae%c0%ae"), 400),
    "target-surrogate": (get("/jobs/%ed%a0%80"), 400),
    "target-doubly-encoded": (get("/jobs/%252e%252e%252f"), 404),
    "target-dots": (get("/../../etc/passwd"), 404),
    "target-dots-encoded": (get("/datasets/%2e%2e%2f%2e%2e%2fetc%2fpasswd"), 404),
    "target-slashes": (get("//jobs"), 404),
    "target-absolute": (get("http://localhost/healthz"), 400),
    "target-absolute-elsewhere": (get("http://example.com/"), 400),
    "target-star": (get("*", method="OPTIONS"), 400),
    "query-nul": (get("/jobs?cursor=%00"), 422),
    "query-percent-alone": (get("/jobs?limit=%"), 422),
    "query-not-utf8": (get("/rank-patterns?model=%ff&dataset=%ff"), 404),
    "connect": (get("localhost:80", method="CONNECT"), 400),
    "connect-to-path": (get("/jobs", method="CONNECT"), 405),
    "trace": (get("/jobs", method="TRACE"), 405),
    "method-unknown": (get("/jobs", method="BREW"), 405),
    "method-lower-case": (get("/jobs", method="get"), 405),
    "method-no-token": (get("/jobs", method="G(T"), 400),
    "version-0.9": ("GET /healthz\r\n\r\n", 400),
    "version-2": ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "version-9.9": (get("/healthz", version="HTTP/9.9"), 400),
    "version-nonsense": (get("/healthz", version="HTCPCP/1.0"), 400),
    "host-missing": ("GET /healthz HTTP/1.1\r\n\r\n", 400),
    "host-missing-in-1.0": ("GET /healthz HTTP/1.0\r\n\r\n", 403),
    "host-twice": (get("/healthz", "Host: other"), 400),
    "expect-unknown": (post("Expect: 200-ok", "Content-Length: 2", body="{}"), 400),
    "tls": ("\x16\x03\x01\x02\x00\r\n\r\n", 400),
    "empty-lines": ("\r\n" * 10_000, 400),
}  # fmt: skip
ANSWERED = {
    "http-1.0": (get("/healthz", version="HTTP/1.0"), 200),
    "http-1.0-kept-alive": (get("/healthz", "Connection: keep-alive", version="HTTP/1.0"), 200),
    "as-many-fields-as-are-allowed": (get("/healthz", *(f"X-{n}: 1" for n in range(99))), 200),
    "upgrade": (get("/healthz", "Connection: Upgrade", "Upgrade: websocket"), 200),
    "upgrade-h2c": (get("/healthz", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"), 200),
    "equal-lengths": (post("Content-Length: 2", "Content-Length: 2", body="{}"), 422),
    "length-with-zeros": (post("Content-Length: 0000000002", body="{}"), 422),
    "chunked": (post("Transfer-Encoding: chunked", body="2\r\n{}\r\n0\r\n\r\n"), 422),
    "expect-continue": (post("Expect: 100-Continue", "Content-Length: 2", body="{}"), 422),
    "encoded-letters": (get("/%68ealthz"), 200),
}  # fmt: skip


@pytest.mark.parametrize("name", [*REFUSED, *ANSWERED])
def test_what_is_sent_is_answered(service, name):
    """With the status it is due, a problem where the head could be read, and a clean log."""
    sent, status = (REFUSED | ANSWERED)[name]
    mark = len(service.log.read_text())

    reply = ask(service.address, sent.encode("latin-1"))

    assert reply.status == status
    kind = reply.headers["content-type"].partition(";")[0]
    assert kind in {"application/problem+json", "application/json", "text/plain"}
    assert kind != "text/plain" or status == 400  # uvicorn's own, of what is no HTTP
    assert service.client.get("/healthz").status_code == 200
    log = service.log_since(mark)
    assert "Traceback" not in log
    assert " ERROR " not in log
    assert '"ERROR"' not in log


def test_a_refused_head_is_a_problem_that_says_what_is_wrong(service):
    """Of all that can be read."""
    for name in ("length-and-chunked", "fields-too-many", "target-nul", "expect-unknown"):
        reply = ask(service.address, REFUSED[name][0].encode())
        assert reply.problem["code"] == "malformed_request"
        assert reply.problem["request_id"]
        assert reply.headers["connection"] == "close"


def test_two_requests_of_which_the_first_is_ambiguous_are_not_two(service):
    """What a proxy takes for the body of one must not be answered as another."""
    smuggled = get("/version")
    first = post("Content-Length: 6", "Transfer-Encoding: chunked", body="0\r\n\r\n")

    received = ask_all(service.address, (first + smuggled).encode())

    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"\r\n\r\n") == 1


def test_a_connection_goes_on_after_a_refusal_by_a_route(service):
    """Only an unsound head ends it."""
    connection = http.client.HTTPConnection(*service.address, timeout=20)
    statuses = []
    for path in ("/healthz", "/nowhere", "/version"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
    connection.close()

    assert statuses == [200, 404, 200]
