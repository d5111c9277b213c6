"""A job's progress as notifications of the call that waits for it."""

from typing import Any, Self

import anyio
from mcp.server.mcpserver import Context

from fimlora_contract.jobs import Job


class ProgressTeller:
    """Tells the caller of a tool where a job stands, whenever that has changed.

    A poll calls back; what it says is sent by a task beside it, so that a caller that reads
    slowly holds nothing up.

    Args:
        ctx: The call.
    """

    def __init__(self, ctx: Context[Any, Any]) -> None:
        self._ctx, self._last, self._count = ctx, "", 0
        self._send, self._receive = anyio.create_memory_object_stream[tuple[int, str]](100)
        self._tasks = anyio.create_task_group()

    def tell(self, job: Job) -> None:
        """Note where a job stands."""
        said = _words(job)
        if said == self._last:
            return
        self._last, self._count = said, self._count + 1
        try:
            self._send.send_nowait((self._count, said))
        except anyio.WouldBlock:
            return  # the caller is behind; it hears of a later stand

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._pass_on)
        return self

    async def __aexit__(self, *_: object) -> None:
        # Not told of an exception: a group of tasks would wrap it in one of its own.
        self._send.close()
        await self._tasks.__aexit__(None, None, None)

    async def _pass_on(self) -> None:
        async with self._receive:
            async for count, said in self._receive:
                await self._ctx.report_progress(count, None, said)


def _words(job: Job) -> str:
    progress = job.progress
    if progress is None:
        return f"{job.id} {job.status}"
    batches = f", batch {progress.batch} of {progress.n_batches}" if progress.n_batches else ""
    return f"{job.id} {job.status}: {progress.stage}{batches}"
