"""Bodies that come too slowly are given up: each has so many seconds, and one more per KiB."""

import time

from anyio import move_on_after
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SLOWEST_BYTES_S = 1024


class SlowBodyMiddleware:
    """Wait for a body for a while only; what we do with it meanwhile does not count.

    Args:
        app: What is asked.
        patience_s: For how long at least, whatever has come.
    """

    def __init__(self, app: ASGIApp, *, patience_s: float) -> None:
        self._app = app
        self._patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left_s, has_more = self._patience_s, True

        async def receive_in_time() -> Message:
            nonlocal left_s, has_more
            if not has_more:
                return await receive()
            began, message = time.monotonic(), None
            with move_on_after(max(left_s, 0)):
                message = await receive()
            if message is None:
                raise HTTPException(
                    408,
                    f"the body was not there within {self._patience_s:g} s and a second more "
                    f"for every {SLOWEST_BYTES_S} bytes",
                    headers={"Connection": "close"},
                )
            left_s -= time.monotonic() - began
            left_s += len(message.get("body", b"")) / SLOWEST_BYTES_S
            has_more = message.get("more_body", False)
            return message

        await self._app(scope, receive_in_time, send)
