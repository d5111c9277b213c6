"""One adapter is computed with at a time: what a matrix takes is not taken twice at once."""

from asyncio import Semaphore
from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

T = TypeVar("T")


class AdapterLimit:
    """A thread for work on adapters; first come, first served, and none waits in a thread."""

    def __init__(self) -> None:
        self._one = Semaphore(1)

    async def run(self, step: Callable[[], T]) -> T:
        """Take a step in a thread, after those that came before."""
        async with self._one:
            return await run_in_threadpool(step)
