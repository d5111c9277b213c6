"""A service of a few lines that answers what a test scripts, on a real port."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.service_process import free_port


class ScriptedService:
    """Answers paths with JSON; of a list each answer in turn, the last one for ever."""

    def __init__(self) -> None:
        self.port = free_port()
        self.answers: dict[str, list[Any]] = {}
        self.asked: list[str] = []
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; on the same port each time."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.asked.append(self.path)
                script = service.answers.get(self.path)
                body = json.dumps(_next(script) if script else {}).encode()
                self.send_response(200 if script else 404)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Be away."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def _next(script: list[Any]) -> Any:
    return script.pop(0) if len(script) > 1 else script[0]


@contextmanager
def scripted_service() -> Iterator[ScriptedService]:
    """One that listens, and is gone afterwards."""
    service = ScriptedService()
    service.start()
    try:
        yield service
    finally:
        service.stop()


def job_as_json(job_id: str, status: str, **fields: Any) -> dict[str, Any]:
    """A job as the service answers it."""
    values: dict[str, Any] = {"id": job_id, "status": status, "attempt": 1, "created_at": 0}
    return values | {"request": {}, "resolved": {}} | fields
