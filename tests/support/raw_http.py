"""Bytes to a server and what comes back, with nothing in between that would put them right."""

import json
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Address = tuple[str, int]
PATIENCE_S = 20.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class Reply:
    """What a server said.

    Attributes:
        status: Of the first answer; 0 if there was none.
        headers: Its fields, by their names in lower case.
        body: Its body, and all that came behind it.
        is_closed: Whether the server closed the connection.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    is_closed: bool

    @property
    def problem(self) -> Any:
        """The problem document."""
        assert self.headers["content-type"] == "application/problem+json", self
        return json.loads(self.body[: int(self.headers["content-length"])])


def dial(address: Address, *, client: str = "127.0.0.1") -> socket.socket:
    """A connection on which nothing is waited for without end, from an address of ours."""
    return socket.create_connection(address, timeout=PATIENCE_S, source_address=(client, 0))


def ask(address: Address, sent: bytes) -> Reply:
    """Send bytes and read one answer."""
    with dial(address) as connection:
        # Who refuses a head may answer and hang up before the rest of it is sent.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        return read_reply(connection)


def ask_all(address: Address, sent: bytes) -> bytes:
    """Send bytes and read until the server hangs up."""
    received = b""
    with dial(address) as connection:
        connection.sendall(sent)
        while piece := connection.recv(65_536):
            received += piece
    return received


def drip(address: Address, first: bytes, then: Iterable[bytes], *, every_s: float) -> Reply:
    """Send bytes, then more of them now and then until an answer comes or the server hangs up."""
    with dial(address) as connection:
        connection.sendall(first)
        deadline = time.monotonic() + PATIENCE_S
        for piece in then:
            assert time.monotonic() < deadline, "the server waits for ever"
            connection.settimeout(every_s)
            try:
                seen = connection.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                connection.sendall(piece)
                continue
            except ConnectionError:
                return Reply(0, {}, b"", is_closed=True)
            connection.settimeout(PATIENCE_S)
            return read_reply(connection) if seen else Reply(0, {}, b"", is_closed=True)
    raise AssertionError("the server took all of it")


def is_closed_while_sending(connection: socket.socket) -> bool:
    """Send a byte now and then, until the server has hung up or patience is lost."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            connection.sendall(b"a")
        except OSError:
            return True
        time.sleep(0.1)
    return False


def read_reply(connection: socket.socket) -> Reply:
    """Read to the end of an answer, or of the connection."""
    received, is_closed = b"", False
    while not is_closed and not _is_whole(received):
        try:
            piece = connection.recv(65_536)
        except ConnectionError:
            piece = b""
        received, is_closed = (received + piece).removeprefix(CONTINUE), not piece
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines[1:])
    headers = {name.lower(): value.strip() for name, _, value in fields}
    status = int(lines[0].split(" ")[1]) if lines[0] else 0
    return Reply(status, headers, body, is_closed)


def _is_whole(received: bytes) -> bool:
    head, separator, body = received.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return (
        bool(separator) and b"\r\ntransfer-encoding:" in head.lower() and b"\r\n0\r\n" in body
    )
