"""A service of a few lines that answers what a test scripts, on a real port."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fimlora_contract.digests import digest_bytes
from support.service_process import free_port


class ScriptedService:
    """Answers paths with JSON, or bytes; of a list each in turn, the last one for ever."""

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
                found = _next(script) if script else {}
                body = found if isinstance(found, bytes) else json.dumps(found).encode()
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

    def add_result(self, job_id: str, files: dict[str, bytes], **result: Any) -> None:
        """Answer a job that has succeeded, and its files."""
        listed = [
            {"name": n, "digest": digest_bytes(b), "size": len(b), "media_type": "text/plain"}
            for n, b in files.items()
        ]
        result |= {"digest": digest_bytes(job_id.encode()), "artifacts": listed}
        kind = {"kind": "evaluation"} if "verdict" in result else {}
        self.answers[f"/jobs/{job_id}"] = [
            job_as_json(job_id, "succeeded", result=result, **kind)
        ]
        self.answers[f"/jobs/{job_id}/artifacts"] = [{"data": listed}]
        for name, content in files.items():
            self.answers[f"/jobs/{job_id}/artifacts/{name}"] = [content]


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
