"""What surrounds every request: an id, a log line, a limit on the body, and no body for HEAD."""

import logging
import re
import time
import uuid

from anyio import CancelScope
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fimlora_jobs.logs import log_context

REQUEST_ID = "fimlora.request_id"
SOUND_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
UPLOADS = ("/datasets", "/adapters")
ENDLESS = "text/event-stream"
# Asked every few seconds by whatever watches over the service: news only when refused.
WATCHED = frozenset({"/healthz", "/readyz", "/metrics"})
logger = logging.getLogger(__name__)


class RequestIdMiddleware:
    """Give every request an id, the client's if it sent a sound one, and log its end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if SOUND_ID.fullmatch(given) else uuid.uuid4().hex
        scope[REQUEST_ID] = request_id
        began, status = time.monotonic(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        with log_context(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                fields = {"method": scope["method"], "path": scope["path"], "status": status}
                fields["ms"] = round(1000 * (time.monotonic() - began))
                if tenant := tenant_of(scope):
                    fields["tenant"] = tenant
                logger.log(level_of(scope, status), "request.done", extra=fields)


def tenant_of(scope: Scope) -> str:
    """Whose request it was, as far as that was found out; empty for the operator's."""
    return getattr(scope.get("state", {}).get("principal"), "tenant", "")


def is_watched(scope: Scope) -> bool:
    """Whether a request looks whether the service is well, and wants nothing of it."""
    return str(scope["path"]).removeprefix("/v1") in WATCHED


def level_of(scope: Scope, status: int) -> int:
    """How much a request matters to whoever reads the log."""
    if not is_watched(scope):
        return logging.INFO
    return logging.WARNING if status >= 500 else logging.DEBUG


class BodyLimitMiddleware:
    """Refuse bodies above a limit while they are read, so that none fills the memory."""

    def __init__(self, app: ASGIApp, *, limit: int, upload_limit: int) -> None:
        self._app = app
        self._limit = limit
        self._upload_limit = upload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["path"].removeprefix("/v1") in UPLOADS
        limit = self._upload_limit if is_upload else self._limit
        length = Headers(scope=scope).get("content-length", "")
        digits = length.lstrip("0")
        # Whatever has more digits is over any limit, and may be over what Python reads.
        declared = int(digits or 0) if len(digits) < 19 else limit + 1
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive() if declared <= limit else {"type": "too large"}
            received += len(message.get("body", b""))
            if max(declared, received) > limit:
                raise HTTPException(413, f"the body is over the limit of {limit} bytes")
            return message

        await self._app(scope, receive_limited, send)


class HeadMiddleware:
    """Answer HEAD as GET would, and keep the body back; an endless one is not waited for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                # The end waits for the handler, which has a file to read out and close.
                if not message.get("more_body", False):
                    await send({**message, "body": b""})
                return
            await send(message)
            if Headers(scope=message).get("content-type", "").startswith(ENDLESS):
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                body.cancel()

        with CancelScope() as body:
            await self._app({**scope, "method": "GET"}, receive, send_head)
