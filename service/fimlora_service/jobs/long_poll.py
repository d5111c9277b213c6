"""Requests that wait for the end of a job: not when the client has gone or the service stops."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Annotated

from fastapi import Depends, Request
from redis.exceptions import RedisError

from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import JobRecord
from fimlora_jobs.store import JobStore
from fimlora_service.http.dependencies import SettingsDep, StoppingDep, StoreDep
from fimlora_service.http.threads import Threads, in_thread


@dataclass(frozen=True, slots=True)
class LongPoll:
    """How a request waits.

    Attributes:
        request: The request; it may have gone.
        store: Where jobs are on record.
        stopping: Set when the service stops.
        every_s: Seconds between looks at the store.
    """

    request: Request
    store: JobStore
    stopping: Event
    every_s: float

    async def wait_for_end(self, id: str, *, at_most_s: float) -> None:
        """Return when the job has ended, or when waiting on makes no sense."""
        deadline = time.monotonic() + at_most_s
        while not (await in_thread(Threads.LOOKS, self.store.status_of, id)).is_final:
            if time.monotonic() >= deadline or self.stopping.is_set():
                return
            if await self.request.is_disconnected():
                return
            await asyncio.sleep(self.every_s)

    async def follow(self, record: JobRecord, *, at_most_s: float) -> JobRecord:
        """The record after the wait; as it is known when Redis or the job goes away."""
        with suppress(RedisError, JobMissing):
            await self.wait_for_end(record.id, at_most_s=at_most_s)
            return await in_thread(Threads.LOOKS, self.store.shown, record.id)
        return record


async def _long_poll(
    request: Request, store: StoreDep, settings: SettingsDep, stopping: StoppingDep
) -> LongPoll:
    return LongPoll(request, store, stopping, settings.poll_interval_s)


LongPollDep = Annotated[LongPoll, Depends(_long_poll)]
