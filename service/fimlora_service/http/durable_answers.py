"""An answer waits until what it tells of is on disk; see `fimlora_jobs.durability`.

The wait is nobody's thread: however many requests wait, all others go on.
"""

import asyncio
import logging

from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fimlora_jobs.connection import why_away
from fimlora_jobs.durability import Debt, Durability, NotOnDisk, owe, owing
from fimlora_service.errors import RedisUnavailable
from fimlora_service.http.problems import problem_response

# What they do is a change; what POST does is often none, unless it says that it has made something.
CHANGES = frozenset({"DELETE", "PATCH", "PUT"})
MADE = frozenset({201, 202})
logger = logging.getLogger(__name__)


class DurableAnswersMiddleware:
    """Hold back what is owed until it is on disk; when it does not get there, refuse."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with owing() as debt:
            answer = DurableAnswer(scope, receive, send, debt)
            await self._app(scope, receive, answer.send)


class DurableAnswer:
    """One answer on its way out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, debt: Debt) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._debt = debt
        self._has_begun = False
        self._is_cut = False

    async def send(self, message: Message) -> None:
        """Pass a part on once it may be told; after a refusal, nothing more."""
        if self._is_cut:
            return
        if message["type"] == "http.response.start":
            status = message["status"]
            if status in MADE or (self._scope["method"] in CHANGES and status < 400):
                owe()
            if message["status"] >= 500:
                self._debt.until_ms = 0
        try:
            await self._pay()
        except (RedisError, OSError) as error:
            self._is_cut = True
            await self._refuse(error)
            return
        self._has_begun = True
        await self._send(message)

    async def _pay(self) -> None:
        durability: Durability | None = self._scope["state"].get("durability")
        if durability is None or not self._debt.until_ms:
            return
        if not durability.covers(self._debt.until_ms):
            await asyncio.wrap_future(durability.settled())
        self._debt.until_ms = 0

    async def _refuse(self, error: RedisError | OSError) -> None:
        reason = str(error) if isinstance(error, NotOnDisk) else why_away(error)
        logger.warning("answer.not_durable", extra={"error": reason})
        if self._has_begun:  # a stream: its client comes again where it was cut off
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        problem = RedisUnavailable("Redis cannot bring to disk what would be answered")
        response = problem_response(Request(self._scope), problem)
        await response(self._scope, self._receive, self._send)
