"""Connections: whoever keeps us waiting is let go, and there are only so many at once.

uvicorn closes a connection that is silent after an answer, and waits for ever for a head that
comes slowly, for one that never comes, and for somebody who does not read. Here its protocol is
wrapped, not changed: what goes in and out passes by, and a deadline runs while the client has
to do something.
"""

import asyncio
import logging
import resource
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import ioctl
from functools import partial
from http import HTTPStatus
from termios import TIOCOUTQ
from time import monotonic
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from fimlora_service.errors import MalformedRequest, Overloaded, RequestTimeout, ServiceError
from fimlora_service.http.problems import MEDIA_TYPE, document_of
from fimlora_service.http.slow_bodies import SLOWEST_BYTES_S

LINGER_S = 2.0  # for an answer that says good-bye to be read
TELL_EVERY_S = 60.0
# Besides connections: Redis, files of results, models and datasets, the hub.
OTHER_FILES = 256
_KEY = "fimlora.connection"
logger = logging.getLogger(__name__)


class Connections:
    """The open connections of a server, and their limits.

    Args:
        at_most: How many there may be. When there are, the one that has kept us waiting longest
            gives way to a new one; if none does, the new one is refused.
        patience_s: For how long a client is waited for: to send the head of a request, or to
            read on, which it may do slowly.
    """

    def __init__(self, *, at_most: int, patience_s: float) -> None:
        self.patience_s = patience_s
        self._at_most = at_most
        self._open: set[Connection] = set()
        self._told = -TELL_EVERY_S

    def protocol(self) -> type[asyncio.Protocol]:
        """What uvicorn makes one of for each connection."""
        connections = self

        class Bound(Connection):
            def __init__(
                self,
                config: Config,
                server_state: ServerState,
                app_state: dict[str, Any],
                _loop: asyncio.AbstractEventLoop | None = None,
            ) -> None:
                super().__init__(connections)
                state = {**app_state, _KEY: self}
                self.inner = H11Protocol(config, server_state, state, _loop)

        return Bound

    def watch(self, app: ASGIApp) -> ASGIApp:
        """The application, such that its connection knows when it is at work."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            connection = scope.get("state", {}).pop(_KEY, None)
            if not isinstance(connection, Connection):
                await app(scope, receive, send)
                return
            with connection.answering():
                await app(scope, connection.watch_body(receive), send)

        return watched

    def enter(self, connection: "Connection") -> bool:
        """Take a new connection in, if there is room or room can be made."""
        if len(self._open) >= self._at_most:
            self._tell()
            idle = [other for other in self._open if other.is_waited_for]
            if not idle:
                return False
            min(idle, key=lambda other: other.heard).let_go()
        self._open.add(connection)
        return True

    def leave(self, connection: "Connection") -> None:
        """Forget a connection."""
        self._open.discard(connection)

    def _tell(self) -> None:
        if monotonic() - self._told >= TELL_EVERY_S:
            self._told = monotonic()
            logger.warning("connections.full", extra={"at_most": self._at_most})


class Connection(asyncio.Protocol):
    """One connection, around the protocol that speaks HTTP on it.

    Attributes:
        inner: That protocol.
        heard: When the client last sent something.
    """

    inner: asyncio.Protocol
    _transport: asyncio.Transport

    def __init__(self, connections: Connections) -> None:
        self.heard = monotonic()
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._n_answering = 0
        self._n_asked = 0
        self._awaits_body = False
        self._is_begun = False
        self._is_over = False
        self._is_partial = False
        self._deadlines: dict[str, asyncio.TimerHandle] = {}

    @property
    def is_waited_for(self) -> bool:
        """Whether it is the client's turn."""
        return self._awaits_body or not self._n_answering

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or refuse."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._connections.enter(self):
            self._end(farewell(Overloaded("all connections are in use")))
            return
        self._is_begun = True
        self.inner.connection_made(transport)
        self._start("head")

    def data_received(self, data: bytes) -> None:
        """Pass on what the client sends."""
        if self._is_over:
            return
        self.heard, self._is_partial = monotonic(), True
        try:
            self.inner.data_received(data)
        except Exception as error:  # whatever a client can send, no traceback comes of it
            logger.warning("connection.unreadable", extra={"error": type(error).__name__})
            self._end(farewell(MalformedRequest("the request cannot be read")))

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return None if self._is_over else self.inner.eof_received()

    def pause_writing(self) -> None:
        """The client reads slower than we write: it has so long to go on."""
        self._start("read")
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        """The client has read on."""
        self._stop("read")
        self.inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        for name in list(self._deadlines):
            self._stop(name)
        self._connections.leave(self)
        if self._is_begun:
            self.inner.connection_lost(exc)

    # What the application does

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A request is answered inside the block: its head is there."""
        self._stop("head")
        self._n_answering += 1
        self._n_asked += 1
        try:
            yield
        finally:
            self._n_answering -= 1
            self._is_partial = False
            if not self._n_answering:
                self._start("head")

    def watch_body(self, receive: Receive) -> Receive:
        """What reads a body, such that it is known when the client is waited for."""
        has_more = True

        async def watched() -> Message:
            nonlocal has_more
            self._awaits_body = has_more
            try:
                message = await receive()
            finally:
                self._awaits_body = False
            has_more = has_more and message.get("more_body", False)
            return message

        return watched

    # Deadlines

    def let_go(self) -> None:
        """Close the connection of a client that keeps us waiting."""
        self._connections.leave(self)
        unread = self._transport.get_write_buffer_size()
        if self._transport.is_closing() or unread or self._n_answering:
            self._transport.abort()
        elif self._is_partial and not self._n_asked:
            text = f"the head was not there within {self._connections.patience_s:g} s"
            self._end(farewell(RequestTimeout(text)))
        else:
            self._end(b"")

    def _end(self, last: bytes) -> None:
        self._is_over = True
        with suppress(RuntimeError):  # uvicorn has closed it
            self._transport.write(last)
        self._transport.close()
        self._start("linger", after_s=LINGER_S)

    def _start(self, name: str, *, after_s: float | None = None) -> None:
        self._stop(name)
        after_s = self._connections.patience_s if after_s is None else after_s
        step = partial(self._late, name, self._n_unread())
        self._deadlines[name] = self._loop.call_later(after_s, step)

    def _late(self, name: str, n_unread: int) -> None:
        if name != "linger" and self._is_reading(since=n_unread):
            self._start(name)
        elif name == "head":
            self.let_go()
        else:
            self._transport.abort()

    def _is_reading(self, *, since: int) -> bool:
        """Whether the client takes what we still hold, at the pace that is asked of a body."""
        if not self._transport.get_write_buffer_size():
            return False  # what the system holds it delivers by itself
        fair = self._connections.patience_s * SLOWEST_BYTES_S
        return since - self._n_unread() >= fair

    def _n_unread(self) -> int:
        """Bytes that the client has not taken, those that the system holds among them.

        The system takes more of ours only once a third of its buffer is free: megabytes, for
        which a slow line needs longer than our patience.
        """
        held = array("i", [0])
        with suppress(OSError, ValueError, AttributeError):  # not every system tells
            ioctl(self._transport.get_extra_info("socket").fileno(), TIOCOUTQ, held)
        return self._transport.get_write_buffer_size() + held[0]

    def _stop(self, name: str) -> None:
        if deadline := self._deadlines.pop(name, None):
            deadline.cancel()


def farewell(error: ServiceError) -> bytes:
    """A problem as it goes over the wire, after which the connection is closed."""
    status, body = HTTPStatus(error.status_code), document_of(error)
    headers = error.headers | {
        "Content-Type": MEDIA_TYPE,
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {status} {status.phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


def room_for(wanted: int) -> int:
    """How many connections this process can have open, after it has asked for as many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(ValueError, OSError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return max(min(wanted, soft - OTHER_FILES), soft // 2)
    return wanted
