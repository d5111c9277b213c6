"""One try to deliver: a lookup, a connection, a request, the status of its answer, in limited time.

The time limit is on the whole of it. A receiver that sends a byte now and then is never idle, but
the try ends all the same: on an event loop whatever it waits for is given up and closed. No
redirect is followed, no proxy of the environment used, and of an answer only the status is read.
"""

import asyncio
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import urlsplit

from fimlora_contract.webhooks import origin_of
from fimlora_service.webhooks.receivers import AddressNotAllowed, LookUp, Receivers, look_up

TRY_S = 10.0
LOOKUPS = 16  # at once; one that hangs outlives its try and cannot be ended


class NoAnswer(Exception):
    """There was no answer; the message says why, in a word or two."""


@dataclass
class Poster:
    """Posts to receivers.

    Attributes:
        receivers: Who may be called.
        try_s: Seconds that a try may take in all.
        look_up: Gives all addresses of a name; blocks.
        tls: How receivers prove who they are; by the public authorities if left out.
    """

    receivers: Receivers
    try_s: float = TRY_S
    look_up: LookUp = look_up
    tls: ssl.SSLContext | None = None
    _lookups: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(LOOKUPS), init=False
    )

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send and answer the status.

        Raises:
            NoAnswer: There was none in time.
        """
        import httpx2  # not needed by a service that calls nobody

        reason = "no connection"
        try:
            async with asyncio.timeout(self.try_s):
                for address in await self._addresses(url):
                    # Another address of the same host is tried only if this one is not there.
                    with suppress(httpx2.ConnectError):
                        return await self._post_to(address, url, body, headers)
        except TimeoutError:
            reason = f"no answer within {self.try_s:g} s"
        except AddressNotAllowed as error:
            reason = str(error)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            reason = type(error).__name__
        raise NoAnswer(reason)

    async def _post_to(
        self, address: str, url: str, body: bytes, headers: Mapping[str, str]
    ) -> int:
        import httpx2

        parts = urlsplit(url)
        place = f"[{address}]" if ":" in address else address
        port = f":{parts.port}" if parts.port else ""
        to = parts._replace(netloc=f"{place}{port}").geturl()
        async with (
            httpx2.AsyncClient(verify=self._verify, timeout=None, trust_env=False) as client,
            client.stream(
                "POST",
                to,
                content=body,
                headers={**headers, "Host": parts.netloc, "Connection": "close"},
                extensions={"sni_hostname": parts.hostname},
            ) as answer,
        ):
            return int(answer.status_code)

    @cached_property
    def _verify(self) -> ssl.SSLContext:
        import httpx2

        return self.tls or httpx2.create_ssl_context(trust_env=False)

    async def _addresses(self, url: str) -> list[str]:
        """What the host stands for now; each is allowed.

        Raises:
            AddressNotAllowed: One of them is not.
        """
        origin, parts = origin_of(url) or "", urlsplit(url)
        addresses = await self._looked_up(parts.hostname or "", int(origin.rpartition(":")[2]))
        for address in addresses:
            self.receivers.check_address(address, origin=origin)
        return addresses

    async def _looked_up(self, host: str, port: int) -> list[str]:
        """The addresses of a name, from a thread of its own: nothing waits for one that hangs."""
        if not self._lookups.acquire(blocking=False):
            raise NoAnswer("too many names are being looked up")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str]] = loop.create_future()

        def tell(found: list[str] | Exception) -> None:
            if future.done():
                return  # the try is over
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)

        def work() -> None:
            try:
                found: list[str] | Exception = self.look_up(host, port)
            except Exception as error:  # whatever it is, the try has to be told
                found = error
            finally:
                self._lookups.release()
            with suppress(RuntimeError):  # the loop is closed: the sender has stopped
                loop.call_soon_threadsafe(tell, found)

        threading.Thread(target=work, name="webhook-lookup", daemon=True).start()
        return await future
