"""Bytes that are no HTTP request are answered like every other mistake: by a problem document.

They never reach the app: uvicorn answers them itself, in plain text unless it is told otherwise.
"""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from fimlora_contract.problems import PROBLEMS, Problem


class HttpProtocol(H11Protocol):
    """uvicorn's own protocol, but for this one answer."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- says no more than ours
        """Answer, and close the connection."""
        body = problem().model_dump_json().encode()
        headers = {
            "Content-Type": "application/problem+json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        head = h11.Response(status_code=400, headers=[*headers.items()], reason=b"Bad Request")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def problem() -> Problem:
    """What is told to who sent something else than HTTP."""
    code = "malformed_request"
    return Problem(
        type=f"/problems/{code}",
        title=PROBLEMS[code].title,
        status=PROBLEMS[code].status,
        code=code,
        detail="what was sent is no HTTP/1.1 request",
        next_step="Look at the request line and the headers, and send http://, not https://.",
        instance=None,
        errors=[],
    )
