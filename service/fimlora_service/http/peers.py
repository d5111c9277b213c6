"""Who may ask without a key: only who is on this machine.

A request that says it came through a proxy is from elsewhere, whoever sends it on: its own
account of where it began proves nothing.
"""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from fimlora_service.addresses import is_loopback
from fimlora_service.errors import Unauthenticated
from fimlora_service.http.problems import problem_response

# What probes ask and what describes the service; none of it is anybody's.
OPEN = frozenset({
    "/healthz", "/readyz", "/version", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json",
})  # fmt: skip
FORWARDING = frozenset({
    b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
    b"x-real-ip",
})  # fmt: skip
REFUSAL = "without an API key only this machine itself is served"
CHALLENGE = {"WWW-Authenticate": "Bearer"}
NEXT_STEP = (
    "Ask from the machine itself, or have the operator make a key there with fimlora keys create "
    "NAME (or set FIMLORA_ADMIN_KEY), and send Authorization: Bearer KEY."
)


class PeerMiddleware:
    """Refuse peers on other machines that bring no key, before anything of theirs is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and needs_key(scope):
            error = Unauthenticated(REFUSAL, next_step=NEXT_STEP, headers=CHALLENGE)
            await problem_response(Request(scope), error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def needs_key(scope: Scope) -> bool:
    """Whether a request can only be answered to who has a key, and brings none."""
    return not (
        scope["path"].removeprefix("/v1") in OPEN
        or is_local(scope)
        or any(name == b"authorization" for name, _ in scope["headers"])
    )


def require_local(request: Request) -> None:
    """Refuse who is not on this machine, as long as there are no keys.

    Raises:
        Unauthenticated: The peer is elsewhere; the next step says how keys are made.
    """
    if not is_local(request.scope):
        raise Unauthenticated(REFUSAL, next_step=NEXT_STEP, headers=CHALLENGE)


def is_local(scope: Scope) -> bool:
    """Whether a request comes from this machine and through no proxy."""
    if any(name in FORWARDING for name, _ in scope["headers"]):
        return False
    peer = scope.get("client")
    # A peer that is gone has no address either: only a socket in the file system has no port.
    return is_loopback(peer[0]) if peer else is_file_socket(scope)


def is_file_socket(scope: Scope) -> bool:
    """Whether a connection came through a Unix socket, which file permissions guard."""
    server = scope.get("server")
    return server is not None and server[1] is None
