"""GET /jobs/{id}/events: a job's history, as a live stream or as a page.

The stream is Server-Sent Events: each event has the id it has in the store, so a client
that lost the connection goes on behind the last one it saw.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event

from fastapi.sse import EventSourceResponse, format_sse_event
from redis.exceptions import RedisError

from fimlora_contract.jobs import JobEvent, JobEventPage
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.store import JobStore
from fimlora_service.errors import NotAcceptable
from fimlora_service.http.headers import quality_of
from fimlora_service.http.threads import Threads, in_thread

STREAM = EventSourceResponse.media_type
# How clients spell what there is; anything (*/*) is a stream.
PAGES = ("application/json", "application/*")
STREAMS = (STREAM, "text/*", "*/*")
RECONNECT_MS = 2_000
# An event of the stream, in the words of OpenAPI 3.2.
EVENT_SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["status", "progress"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobEvent"},
        },
        "retry": {"type": "integer"},
    },
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a stream goes.

    Attributes:
        every_s: Seconds between looks at the store.
        alive_s: Seconds of silence after which a comment keeps the connection open.
        stopping: Set when the server stops.
    """

    every_s: float
    alive_s: float
    stopping: Event


def wants_page(accept: str) -> bool:
    """Whether a client would rather have JSON than a stream.

    Raises:
        NotAcceptable: It takes neither.
    """
    if page := quality_of(accept, PAGES):
        return page > quality_of(accept, (STREAM,))
    if not quality_of(accept, STREAMS):
        raise NotAcceptable(
            "the events are there as application/json or text/event-stream only"
        )
    return False


def read_page(store: JobStore, id: str, *, after: str, limit: int) -> JobEventPage:
    """Some events behind one, and where to go on."""
    events = store.events(id, after=after, limit=limit + 1)
    more = events[limit - 1].id if len(events) > limit else None
    return JobEventPage(data=events[:limit], next_cursor=more)


async def follow(
    store: JobStore,
    id: str,
    *,
    after: str,
    pace: Pace,
    place: AbstractContextManager[bool],
) -> AsyncIterator[bytes]:
    """Parts of the stream, until the job's last event, or until Redis or we go away.

    Args:
        store: Where jobs are on record.
        id: The job.
        after: The event behind which the stream begins.
        pace: How it goes.
        place: Taken for as long as it lasts.
    """
    yield format_sse_event(retry=RECONNECT_MS)
    try:
        with place as is_there:
            if is_there:  # else somebody was faster: the client reconnects and is told
                async for part in _parts(store, id, after=after, pace=pace):
                    yield part
    except (RedisError, JobMissing) as error:
        # The answer has begun: close it, the client reconnects and is told then.
        logger.warning("events.interrupted", extra={"job_id": id, "error": str(error)})


async def _parts(store: JobStore, id: str, *, after: str, pace: Pace) -> AsyncIterator[bytes]:
    spoke = time.monotonic()
    while not pace.stopping.is_set():
        # The status first: when it is final, all events are there to be read.
        status = await in_thread(Threads.LOOKS, store.status_of, id)
        events = await in_thread(Threads.LOOKS, store.events, id, after=after)
        for event in events:
            yield formatted(event)
            after, spoke = event.id, time.monotonic()
        if status.is_final and not events:
            return
        if not events and time.monotonic() - spoke >= pace.alive_s:
            yield format_sse_event(comment="keep-alive")
            spoke = time.monotonic()
        if not status.is_final:
            await asyncio.sleep(pace.every_s)


def formatted(event: JobEvent) -> bytes:
    """One event in the stream's format."""
    return format_sse_event(id=event.id, event=event.type, data_str=event.model_dump_json())
