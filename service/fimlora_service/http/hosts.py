"""The Host check: the service answers only by names that are its own.

A page of evil.example can have that name resolve to 127.0.0.1 (DNS rebinding); to the browser it
is then of one origin with the service, and only the Host header tells them apart.

Starlette's TrustedHostMiddleware is no help: it cuts a host at its first colon, so that no IPv6
address is ever right, looks at the first of several headers and at no absolute target, knows
nothing of the address a request came to, and answers in plain text.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache, partial

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from fimlora_contract.field_errors import clip
from fimlora_service.addresses import address_of, authority_of, is_loopback
from fimlora_service.errors import HostNotAllowed
from fimlora_service.http.problems import problem_response

ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
MAX_CHARS = 300
ALLOWED = (
    "allowed are localhost, loopback addresses, the address that the request came to, and "
    "what FIMLORA_ALLOWED_HOSTS names"
)


class HostMiddleware:
    """Refuse what is sent to a name that is not ours, before anything else looks at it.

    Args:
        app: What is protected.
        allowed: Patterns of further names, such as ``*.example.com``.
    """

    def __init__(self, app: ASGIApp, *, allowed: Iterable[str]) -> None:
        self._app = app
        self._patterns = tuple(map(plain, allowed))
        self._look = lru_cache(maxsize=256)(self._look_up)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        named = [value for name, value in scope["headers"] if name == b"host"]
        server = scope.get("server")
        at = server[0] if server else ""
        target = ABSOLUTE.fullmatch(scope.get("raw_path") or b"")
        if target:  # what it names goes before the header, so that both must be ours
            named.append(target[1])
            cut = len(target[0]) - len(target[2])
            path, raw_path = scope["path"][cut:] or "/", target[2] or b"/"
            scope = {**scope, "path": path, "raw_path": raw_path}
        n_expected = 2 if target else 1
        if len(named) == n_expected and all(map(partial(self._is_ours, at=at), named)):
            await self._app(scope, receive, send)
            return
        error = HostNotAllowed(f"{describe(named, n_expected)}; {ALLOWED}")
        await problem_response(Request(scope), error)(scope, receive, send)

    def _is_ours(self, named: bytes, *, at: str) -> bool:
        # What is too long for any name is not kept in the cache, which strangers fill.
        return len(named) <= MAX_CHARS and self._look(named, at)

    def _look_up(self, named: bytes, at: str) -> bool:
        """Whether a host is one of ours, where the request came to ``at``."""
        authority = authority_of(named.decode("latin-1"))
        if authority is None:
            return False
        host = plain(authority.host)
        if host == "localhost" or is_loopback(host):
            return True
        if address_of(host) is not None and host == plain(at):
            return True
        return any(fnmatchcase(host, pattern) for pattern in self._patterns)


def plain(host: str) -> str:
    """A host or pattern in the one spelling that is compared."""
    host = host.lower().removeprefix("[").removesuffix("]")
    address = address_of(host)
    return host if address is None else str(address)


def describe(named: list[bytes], n_expected: int) -> str:
    """What is wrong, in words."""
    if len(named) < n_expected:
        return "the request names no host"
    if len(named) > n_expected:
        return f"the request has {len(named) - n_expected + 1} Host headers"
    return "the request is to " + ", ".join(repr(clip(n.decode("latin-1"))) for n in named)
