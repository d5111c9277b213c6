"""Who is answered before there are keys: only who is on this machine.

A request that says it came through a proxy is from elsewhere, whoever sends it on: its own
account of where it began proves nothing.
"""

from starlette.types import Scope

from fimlora_service.addresses import is_loopback
from fimlora_service.errors import Unauthenticated

FORWARDING = frozenset({
    b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
    b"x-real-ip",
})  # fmt: skip
CHALLENGE = {"WWW-Authenticate": "Bearer"}
FIRST_KEY = (
    "fimlora keys create NAME --scopes admin makes the first key on the machine itself; or set "
    "FIMLORA_ADMIN_KEY"
)


def require_local(scope: Scope) -> None:
    """Refuse who is not on this machine.

    Raises:
        Unauthenticated: The peer is elsewhere; the next step says how keys are made.
    """
    if not is_local(scope):
        raise Unauthenticated(
            "as long as there are no API keys only this machine itself is served",
            next_step=f"{FIRST_KEY}; then send Authorization: Bearer KEY.",
            headers=CHALLENGE,
        )


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
