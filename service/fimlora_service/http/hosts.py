"""The Host check: the service answers only by names that are its own.

A page of evil.example can have that name resolve to 127.0.0.1 (DNS rebinding); to the browser it
is then of one origin with the service, and only the Host header tells them apart. Targets that
name a host of their own are refused as such (`sound_heads`).

Starlette's TrustedHostMiddleware is no help: it cuts a host at its first colon, so that no IPv6
address is ever right, looks at the first of several headers, knows nothing of the address a request came to, and answers in plain text.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from fimlora_contract.field_errors import clip
from fimlora_service.addresses import address_of, authority_of, is_loopback
from fimlora_service.errors import HostNotAllowed
from fimlora_service.http.problems import problem_response

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
        if len(named) == 1 and self._is_ours(named[0], at=server[0] if server else ""):
            await self._app(scope, receive, send)
            return
        error = HostNotAllowed(f"{describe(named)}; {ALLOWED}")
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


def describe(named: list[bytes]) -> str:
    """What is wrong, in words."""
    if len(named) != 1:
        return (
            f"the request has {len(named)} Host headers" if named else "there is no Host header"
        )
    return f"the request is to {clip(named[0].decode('latin-1'))!r}"
