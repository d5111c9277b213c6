"""The Redis that the user gave by ``REDIS_URL``: refused at once when it does not answer."""

import socket
import ssl
from urllib.parse import SplitResult, unquote, urlsplit

from fimlora_client.stack.errors import StackError
from fimlora_contract.environment import hide_password

CONNECT_S, ANSWER_S = 4.0, 4.0
DEFAULT_PORT = 6379
NEXT_STEP = (
    "Start that server, correct REDIS_URL, or unset it: then fimlora up starts a server of "
    "its own."
)


def check_reachable(url: str) -> None:
    """Ask whether a server answers; what it answers is the processes' own affair.

    Raises:
        StackError: Nothing answers there in time, or it is no address of a Redis.
    """
    shown = ""
    try:
        shown = repr(hide_password(url))
        parts = urlsplit(url)
        if parts.scheme not in {"redis", "rediss", "unix"}:
            raise ValueError("it must begin with redis://, rediss:// or unix://")
        with _connect(parts) as connection:
            connection.settimeout(ANSWER_S)
            connection.sendall(b"PING\r\n")
            if not connection.recv(1):
                raise ConnectionError("the connection was closed instead of an answer")
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StackError(f"REDIS_URL {shown} cannot be used: {reason}", NEXT_STEP) from error


def _connect(parts: SplitResult) -> socket.socket:
    if parts.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(CONNECT_S)
        try:
            connection.connect(unquote(parts.path))
        except OSError:
            connection.close()
            raise
        return connection
    host = parts.hostname or "localhost"
    connection = socket.create_connection((host, parts.port or DEFAULT_PORT), timeout=CONNECT_S)
    if parts.scheme == "rediss":
        # Whose certificate it is, is for those to check who say something over it.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(connection, server_hostname=host)
    return connection
