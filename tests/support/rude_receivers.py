"""Receivers of webhooks that keep a caller busy: they never finish what they begin."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Conduct = Callable[[socket.socket, threading.Event], None]
DRIP_S = 0.05


def silent(connection: socket.socket, stop: threading.Event) -> None:
    """Answer nothing."""
    stop.wait()


def drip(connection: socket.socket, stop: threading.Event) -> None:
    """A byte of the status line now and then."""
    for byte in b"HTTP/1.1 200 OK" + b" " * 10_000:
        connection.sendall(bytes([byte]))
        if stop.wait(DRIP_S):
            return


def endless_headers(connection: socket.socket, stop: threading.Event) -> None:
    """A header now and then, and never the end of them."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not stop.wait(DRIP_S):
        connection.sendall(b"X-More: to come\r\n")


def endless_preliminaries(connection: socket.socket, stop: threading.Event) -> None:
    """An answer that says that the answer is to come, again and again."""
    while not stop.wait(DRIP_S):
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")


def huge_headers(connection: socket.socket, stop: threading.Event) -> None:
    """As many headers as the caller takes."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while not stop.is_set():
        connection.sendall(b"X-More: " + b"a" * 1000 + b"\r\n")


def endless_body(connection: socket.socket, stop: threading.Event) -> None:
    """A status, and a body without an end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not stop.wait(DRIP_S):
        connection.sendall(b"3e8\r\n" + b"a" * 1000 + b"\r\n")


@contextmanager
def rude_receiver(conduct: Conduct) -> Iterator[str]:
    """Listen on a free port of this machine; gives the address."""
    stop, threads = threading.Event(), []
    server = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            conduct(connection, stop)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        stop.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for thread in (accepting, *threads):
            thread.join()
