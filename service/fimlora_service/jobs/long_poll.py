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
from fimlora_service.http.waiting import WaitingRoom, WaitingRoomDep, client_of


@dataclass(frozen=True, slots=True)
class LongPoll:
    """How a request waits.

    Attributes:
        request: The request; it may have gone.
        store: Where jobs are on record.
        stopping: Set when the service stops.
        every_s: Seconds between looks at the store.
        room: Where requests wait.
    """

    request: Request
    store: JobStore
    stopping: Event
    every_s: float
    room: WaitingRoom

    async def wait_for_end(self, id: str, *, at_most_s: float) -> None:
        """Return when the job has ended, or when waiting on makes no sense.

        A client of which many requests wait is answered at once: it comes again.
        """
        with self.room.place(client_of(self.request)) as is_there:
            await self._wait(id, at_most_s=at_most_s if is_there else 0)

    async def _wait(self, id: str, *, at_most_s: float) -> None:
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
    request: Request,
    store: StoreDep,
    settings: SettingsDep,
    stopping: StoppingDep,
    room: WaitingRoomDep,
) -> LongPoll:
    return LongPoll(request, store, stopping, settings.poll_interval_s, room)


LongPollDep = Annotated[LongPoll, Depends(_long_poll)]
