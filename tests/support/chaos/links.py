"""A link that can be made worse: everything between two processes goes through it.

Not toxiproxy: that is a server to be installed, and speaks no unix sockets.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK = 16 * 1024


@dataclass(frozen=True, slots=True)
class Weather:
    """How a link behaves.

    Attributes:
        delay_s: How long each piece takes.
        bytes_per_s: How much goes through; 0 for all there is.
        is_refused: Connections are cut, and no new ones taken.
        holds_there: Nothing arrives at the server; it does once the weather is better.
        loses_back: What the server answers is lost, and the client is not told.
    """

    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    is_refused: bool = False
    holds_there: bool = False
    loses_back: bool = False


FAIR = Weather()
SLOW = Weather(delay_s=0.15)
NARROW = Weather(bytes_per_s=20_000)
CUT = Weather(is_refused=True)
BLACK_HOLE = Weather(holds_there=True)
HALF_OPEN = Weather(loses_back=True)


class Link:
    """A server of its own on a socket or a port, which hands everything on.

    Args:
        target: Where the server is: a socket's path, or a port of this machine.
        at: The socket's path to listen on; ``None`` for a free port.
    """

    def __init__(self, target: Path | int, *, at: Path | None = None) -> None:
        self.port = 0
        self._target = target
        self._at = at
        self._weather = FAIR
        self._open: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(self._listen())

    def become(self, weather: Weather) -> None:
        """Change the weather, for open connections, too."""
        self._do(self._become(weather))

    def close(self) -> None:
        """Cut everything and stop listening."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, what: Awaitable[Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(_as_coroutine(what), self._loop).result(10)

    async def _listen(self) -> asyncio.Server:
        if self._at:
            return await asyncio.start_unix_server(self._serve, self._at)
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _become(self, weather: Weather) -> None:
        was, self._weather = self._weather, weather
        # A stream with a hole in it is of no more use.
        if weather.is_refused or was.loses_back:
            self._cut()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _close(self) -> None:
        self._server.close()
        self._weather = CUT
        self._changed.set()
        self._cut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _serve(
        self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter
    ) -> None:
        self._open.add(client_out)
        try:
            if self._weather.is_refused:
                return
            server_in, server_out = await self._connect()
            self._open.add(server_out)
            try:
                await _first_to_end(
                    self._pump(client_in, server_out, self._there),
                    self._pump(server_in, client_out, self._back),
                )
            finally:
                self._open.discard(server_out)
                server_out.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # one side has gone: so does the other
        finally:
            self._open.discard(client_out)
            client_out.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        passes: Callable[[], Awaitable[bool]],
    ) -> None:
        while data := await source.read(CHUNK):
            weather = self._weather
            if weather.delay_s or weather.bytes_per_s:
                narrow_s = len(data) / weather.bytes_per_s if weather.bytes_per_s else 0.0
                await asyncio.sleep(weather.delay_s + narrow_s)
            if await passes():
                sink.write(data)
                await sink.drain()

    async def _there(self) -> bool:
        while self._weather.holds_there:
            await self._changed.wait()
        return True

    async def _back(self) -> bool:
        return not self._weather.loses_back


async def _as_coroutine(what: Awaitable[Any]) -> Any:
    return await what


async def _first_to_end(*pumps: Awaitable[None]) -> None:
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await task
