"""The only place that does HTTP: sends a `Call`, returns an `Answer`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from fimlora_client.calls import Answer, Call, raise_for_problem
from fimlora_client.errors import ConnectionFailed

AsyncHttpClient = httpx2.AsyncClient
CONNECT_S = 5.0
READ_S = 30.0
PIECE = 1 << 20
# The stream of events is quiet between batches; the service sends a comment now and then.
QUIET_S = 60.0
AsyncEvents = AsyncIterator[tuple[str, str]]


class AsyncTransport:
    """Sends calls over a connection.

    Args:
        http: A connected client; closed with the transport only when we made it.
        base_url: Where the service is; not used when ``http`` is given.
        headers: Sent with every call.
    """

    def __init__(
        self, http: AsyncHttpClient | None, *, base_url: str, headers: dict[str, str]
    ) -> None:
        self._owned = http is None
        self._http = http or AsyncHttpClient(
            base_url=base_url, trust_env=not _goes_direct(base_url)
        )
        self._headers = headers

    async def send(self, call: Call) -> Answer:
        """Exchange one call for its answer."""
        options = _options(call, self._headers, read_s=READ_S + call.wait_s)
        try:
            async with self._http.stream(**options) as response:
                if call.save_to is None or not response.is_success:
                    return _answer(response, await response.aread())
                with call.save_to.open("wb") as file:
                    async for chunk in response.aiter_bytes():
                        file.write(chunk)
                return _answer(response, b"")
        except httpx2.TransportError as error:
            raise _failed(self._http.base_url, error) from error

    @asynccontextmanager
    async def listen(self, call: Call) -> AsyncIterator[AsyncEvents]:
        """Open a stream of events as pairs of id and data."""
        options = _options(call, self._headers, read_s=QUIET_S)
        try:
            async with self._http.stream(**options) as response:
                if not response.is_success:
                    raise_for_problem(_answer(response, await response.aread()))
                # A message without data only sets the pace of reconnecting.
                yield ((e.id, e.data) async for e in httpx2.EventSource(response) if e.data)
        except httpx2.TransportError as error:
            raise _failed(self._http.base_url, error) from error

    async def close(self) -> None:
        """Close the connections we opened."""
        if self._owned:
            await self._http.aclose()


def _goes_direct(base_url: str) -> bool:
    """Whether no proxy may come between: a proxy cannot reach this machine's loopback."""
    return httpx2.URL(base_url).host in {"127.0.0.1", "::1", "localhost"}


def _options(call: Call, headers: dict[str, str], *, read_s: float) -> dict[str, Any]:
    return {
        "method": call.method,
        "url": call.path,
        "params": dict(call.params),
        "headers": headers | dict(call.headers),
        # Opened anew for each try.
        "content": _pieces(call.content) if isinstance(call.content, Path) else call.content,
        "timeout": httpx2.Timeout(read_s, connect=CONNECT_S),
    }


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _answer(response: httpx2.Response, content: bytes) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, content)


def _failed(base_url: Any, error: Exception) -> ConnectionFailed:
    kind = str(error) or type(error).__name__
    return ConnectionFailed(f"no answer from {str(base_url).rstrip('/')}: {kind}")
