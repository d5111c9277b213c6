"""Work that takes memory is done by few at a time: what one takes is not taken by forty at once."""

from asyncio import Semaphore
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

T = TypeVar("T")


class Turns:
    """Threads for such work; first come, first served, and none waits in a thread.

    Args:
        at_once: How many may work.
    """

    def __init__(self, at_once: int = 1) -> None:
        self._free = Semaphore(at_once)

    async def run(self, step: Callable[[], T]) -> T:
        """Take a step in a thread, after those that came before."""
        async with self._free:
            return await run_in_threadpool(step)
