"""A receiver of traces: takes what OpenTelemetry's exporter sends over HTTP, and keeps it."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Received:
    """What came in.

    Attributes:
        url: Where it is sent.
        spans: Name of the process and span, in the order they came.
    """

    url: str = ""
    spans: list[tuple[str, Any]] = field(default_factory=list)

    def named(self, name: str) -> list[Any]:
        return [span for _, span in self.spans if span.name == name]


@contextmanager
def receiving() -> Iterator[Received]:
    """Listen on a free port of this machine."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                (process,) = [
                    attribute.value.string_value
                    for attribute in resource.resource.attributes
                    if attribute.key == "service.name"
                ]
                for scope in resource.scope_spans:
                    received.spans += [(process, span) for span in scope.spans]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        received.url = f"http://127.0.0.1:{server.server_port}"
        yield received
        server.shutdown()
        thread.join()


def attributes_of(span: Any) -> dict[str, Any]:
    """A span's attributes, by name."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
