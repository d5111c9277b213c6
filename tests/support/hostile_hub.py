"""A hub that answers every question with one and the same hostile answer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class HostileHub:
    """A running one.

    Attributes:
        url: Its endpoint.
        status: Of every answer.
        headers: Of every answer; a length is added where there is none.
        body: Of every answer.
        requests: Every request line so far, with the key it bore.
    """

    url: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    requests: list[tuple[str, str | None]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HostileHub

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""

    def _answer(self) -> None:
        hub = self.hub
        hub.requests.append((f"{self.command} {self.path}", self.headers.get("Authorization")))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(hub.status)
        for name, value in ({"Content-Length": str(len(hub.body))} | hub.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            try:
                self.wfile.write(hub.body)
            except OSError:
                self.close_connection = True  # who asked has had enough

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815 -- names that http.server looks up


@contextmanager
def hostile_hub() -> Iterator[HostileHub]:
    """Serve on a free port of this machine."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub = handler.hub = HostileHub(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
