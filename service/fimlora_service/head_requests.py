"""HEAD is GET without its body (RFC 9110): for whoever wants size, tag or state alone."""

from anyio import CancelScope
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ENDLESS = "text/event-stream"


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
