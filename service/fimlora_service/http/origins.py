"""The Origin check: no page of another site makes the service do anything.

A browser sends a form or a plain POST anywhere without asking first. It says where the page is
from, though, and cannot be made to lie: Sec-Fetch-Site, and Origin in browsers without it. What
bears neither was sent by no browser. A bearer key is a proof of its own: a page can add one only
after a preflight, which is refused to origins that are not allowed.
"""

from collections.abc import Collection

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from fimlora_contract.field_errors import clip
from fimlora_service.addresses import DEFAULT_PORTS, Authority, authority_of, web_origin
from fimlora_service.errors import OriginNotAllowed
from fimlora_service.http.problems import problem_response

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
ASKED_WITH = (
    "Accept", "Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID",
    "Prefer", "X-Request-Id",
)  # fmt: skip
TOLD = (
    "Content-Disposition", "Content-Location", "ETag", "Location", "Preference-Applied",
    "Retry-After", "X-Request-Id",
)  # fmt: skip
OWN_SITES = frozenset({"same-origin", "none"})


class OriginMiddleware:
    """Refuse requests with effects that a browser sends for a page of another origin.

    Args:
        app: What is protected.
        allowed: Origins whose pages may send them, such as ``https://ui.example.com``.
    """

    def __init__(self, app: ASGIApp, *, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in SAFE:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if has_key(headers) or is_own(headers, allowed=self._allowed):
            await self._app(scope, receive, send)
            return
        given = clip(headers.get("origin", "another site"))
        detail = f"{scope['method']} for a page of {given!r}; allowed are pages of this service"
        error = OriginNotAllowed(detail)
        await problem_response(Request(scope), error)(scope, receive, send)


def has_key(headers: Headers) -> bool:
    """Whether a request bears a key; whether it is a valid one is for others to see."""
    return headers.get("authorization", "").lower().startswith("bearer ")


def is_own(headers: Headers, *, allowed: frozenset[str]) -> bool:
    """Whether a request comes from no browser, from a page of ours, or from one allowed."""
    origins, sites = headers.getlist("origin"), headers.getlist("sec-fetch-site")
    if origins and all(origin in allowed for origin in origins):
        return True
    if sites:
        return OWN_SITES.issuperset(sites)
    return all(is_same(origin, headers.get("host", "")) for origin in origins)


def is_same(origin: str, host: str) -> bool:
    """Whether an origin is the host that a request was sent to.

    The scheme is not compared: behind a proxy that ends TLS the service cannot know its own.
    """
    found, own = web_origin(origin), authority_of(host)
    if found is None or own is None:
        return False
    port = own.port if own.port is not None else DEFAULT_PORTS[found[0]]
    return found[1] == Authority(own.host, port)


def add_cors(app: Starlette, allowed: Collection[str]) -> None:
    """Let pages of allowed origins read the answers; without any, no preflight succeeds."""
    if allowed:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(allowed),
            allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
            allow_headers=ASKED_WITH,
            expose_headers=TOLD,
        )
