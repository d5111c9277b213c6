"""A receiver of webhooks: remembers what it is sent and answers as it is told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Receiver:
    """A running receiver.

    Attributes:
        url: Its address.
        got: Path, headers and body of every request so far.
        answers: Status of each answer to come; 200 when there are no more.
        location: Where a redirect leads.
        handler: What answers, for another server.
    """

    url: str
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    location: str = ""
    handler: type[BaseHTTPRequestHandler] = BaseHTTPRequestHandler


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.receiver.got.append((self.path, dict(self.headers.items()), body))
        self.send_response(self.receiver.answers.pop(0) if self.receiver.answers else 200)
        if self.receiver.location:
            self.send_header("Location", self.receiver.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST  # noqa: N815 -- names that http.server looks up


@contextmanager
def running_receiver() -> Iterator[Receiver]:
    """Listen on a free port of this machine."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    receiver = handler.receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
    receiver.handler = handler
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that answers 200."""
    with running_receiver() as running:
        yield running
