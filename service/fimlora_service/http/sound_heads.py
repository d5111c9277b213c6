"""Heads of requests that no honest client sends are refused before anything is made of them.

What is ambiguous is read one way here and another way by a proxy in front: two lengths of one
body, a path that is none, an encoding that stands for nothing.
"""

import re

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from fimlora_service.errors import MalformedRequest
from fimlora_service.http.problems import problem_response

VERSIONS = ("1.0", "1.1", "2")
MAX_HEADERS = 100
MAX_HEAD_BYTES = 16 << 10
PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class SoundHeadMiddleware:
    """Refuse unsound heads with a problem, and close the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = fault_of(scope) if scope["type"] == "http" else None
        if fault is None:
            await self._app(scope, receive, send)
            return
        error = MalformedRequest(
            fault,
            headers={"Connection": "close"},
            next_step="Send a plain HTTP/1.1 request; GET /docs lists the routes.",
        )
        await problem_response(Request(scope), error)(scope, receive, send)


def fault_of(scope: Scope) -> str | None:
    """What is wrong with a head, if something is."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    names = [name for name, _ in headers]
    path, raw_path = scope["path"], scope.get("raw_path") or b""
    if scope["http_version"] not in VERSIONS:
        return f"HTTP/{scope['http_version']}; this is HTTP/1.1"
    if len(names) > MAX_HEADERS:
        return f"{len(names)} header fields; at most {MAX_HEADERS} are allowed"
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        return f"header fields of over {MAX_HEAD_BYTES} bytes"
    if b"transfer-encoding" in names and b"content-length" in names:
        return "both Transfer-Encoding and Content-Length; send one"
    if any(n == b"expect" and v.lower() != b"100-continue" for n, v in headers):
        return "Expect is only understood as 100-continue"
    if not path.startswith("/"):
        return "the target of a request must be a path that begins with /"
    if PERCENT.search(raw_path):
        return "the path has a % that no two hexadecimal digits follow"
    if "\ufffd" in path or CONTROL.search(path):
        return "the path stands for control characters, or is not UTF-8"
    return None
