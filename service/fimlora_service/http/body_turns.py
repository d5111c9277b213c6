"""Bodies are parsed one in a turn of the event loop: hundreds at once hold nobody up.

Reading a request costs milliseconds, in which nothing else is done. Were all that have come
together read together, whoever comes next would wait for the sum.
"""

import asyncio
from collections import deque

from anyio.lowlevel import RunVar
from starlette.types import Message, Receive

_queue: RunVar[asyncio.Lock] = RunVar("fimlora_turns")


async def take_turn() -> None:
    """Wait until the event loop has gone round since the last one who came here went on."""
    try:
        queue = _queue.get()
    except LookupError:
        _queue.set(queue := asyncio.Lock())
    async with queue:
        await asyncio.sleep(0)


async def received_whole(receive: Receive) -> Receive:
    """Wait for the whole of a body, and give it out as it came; who is slow keeps no turn."""
    messages: deque[Message] = deque()
    has_more = True
    while has_more:
        messages.append(message := await receive())
        has_more = message.get("more_body", False)

    async def replay() -> Message:
        return messages.popleft() if messages else await receive()

    return replay
