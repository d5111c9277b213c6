"""The Redis that the user gave by ``REDIS_URL``: refused at once when it cannot be reached."""

import socket
from urllib.parse import SplitResult, unquote, urlsplit

from fimlora_client.stack.errors import StackError
from fimlora_contract.environment import hide_password

CONNECT_S = 5.0
DEFAULT_PORT = 6379
NEXT_STEP = (
    "Start that server, correct REDIS_URL, or unset it: then fimlora up starts a server of "
    "its own."
)


def check_reachable(url: str) -> None:
    """Open a connection and close it; what is spoken over it is the processes' own affair.

    Raises:
        StackError: Nothing listens there, or it is no address of a Redis.
    """
    shown = ""
    try:
        shown = repr(hide_password(url))
        parts = urlsplit(url)
        if parts.scheme not in {"redis", "rediss", "unix"}:
            raise ValueError("it must begin with redis://, rediss:// or unix://")
        _connect(parts)
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StackError(f"REDIS_URL {shown} cannot be used: {reason}", NEXT_STEP) from error


def _connect(parts: SplitResult) -> None:
    if parts.scheme == "unix":
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(CONNECT_S)
            connection.connect(unquote(parts.path))
        return
    address = (parts.hostname or "localhost", parts.port or DEFAULT_PORT)
    socket.create_connection(address, timeout=CONNECT_S).close()
