"""Threads apart by what they are for: who only looks waits for nobody who writes or resolves.

A handler that is a plain function runs in a thread, and there are only so many. Were they one
lot, as many slow downloads or submissions would keep every poll waiting.
"""

import inspect
from collections.abc import AsyncIterator, Callable
from enum import StrEnum
from functools import partial, wraps
from typing import Any, BinaryIO, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from fimlora_contract.digests import CHUNK
from fimlora_service.http.body_turns import received_whole, take_turn

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Threads(StrEnum):
    """What threads are for; all that is none of these shares the framework's own."""

    LOOKS = "looks"
    """Short questions to Redis."""
    FILES = "files"
    """What a disk or an object store may take its time for."""
    DRAWINGS = "drawings"
    """Each waits for a process that draws, so these are few."""


N_THREADS = {Threads.LOOKS: 32, Threads.FILES: 32, Threads.DRAWINGS: 2}
_limiters: RunVar[dict[Threads, CapacityLimiter]] = RunVar("fimlora_limiters")


async def in_thread(
    threads: Threads, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Take a step in a thread of a kind, after those that came before."""
    call = partial(step, *args, **kwargs)
    return await to_thread.run_sync(call, limiter=_limiter_of(threads))


async def read_in_threads(file: BinaryIO) -> AsyncIterator[bytes]:
    """A file piece by piece, closed at the end or when nobody reads on."""
    with file:
        while piece := await in_thread(Threads.FILES, file.read, CHUNK):
            yield piece


def reads_files(handler: F) -> F:
    """Mark a handler of GET that does not only look at Redis."""
    handler.threads = Threads.FILES  # type: ignore[attr-defined]
    return handler


def draws(handler: F) -> F:
    """Mark a handler of GET that waits for something to be drawn."""
    handler.threads = Threads.DRAWINGS  # type: ignore[attr-defined]
    return handler


class ThreadRoute(APIRoute):
    """A route whose GET handler, if it is a plain function, has threads of its own."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if "GET" in (options.get("methods") or ()) and not inspect.iscoroutinefunction(
            endpoint
        ):
            endpoint = _threaded(endpoint, getattr(endpoint, "threads", Threads.LOOKS))
        super().__init__(path, endpoint, **options)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; what has a body to be parsed, in its turn."""
        if self.body_field is not None and scope["method"] in (self.methods or ()):
            receive = await received_whole(receive)
            await take_turn()
        await super().handle(scope, receive, send)


def _threaded(handler: Callable[..., Any], threads: Threads) -> Callable[..., Any]:
    @wraps(handler)
    async def handle(*args: Any, **kwargs: Any) -> Any:
        return await in_thread(threads, handler, *args, **kwargs)

    return handle


def _limiter_of(threads: Threads) -> CapacityLimiter:
    """The limit of a kind, one for each event loop."""
    limiters = _limiters.get({})
    if threads not in limiters:
        limiters[threads] = CapacityLimiter(N_THREADS[threads])
        _limiters.set(limiters)
    return limiters[threads]
