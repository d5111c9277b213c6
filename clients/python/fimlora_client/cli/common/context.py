"""How commands reach the service."""

from collections.abc import Callable
from dataclasses import dataclass

import typer

from fimlora_client.aio.client import AsyncClient
from fimlora_client.blocking.client import Client
from fimlora_client.calls import Answer, said_in
from fimlora_client.cli.common.console import say
from fimlora_client.context import Context

WORTH_SAYING_S = 1.0


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the service is, or, in tests, a client that is already there."""

    url: str | None = None
    context: Context | None = None
    connect: Callable[[], Client] | None = None

    def open(self) -> Client:
        """A client of the service."""
        return self.connect() if self.connect else Client(self.url, context=self.context)

    def open_async(self) -> AsyncClient:
        """A client of the service for what waits for several things at once."""
        return AsyncClient(self.url)


class PauseTeller:
    """Says at once why a command waits, each reason once: a full queue may be so for minutes."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, answer: Answer, seconds: float) -> None:
        """Say what was refused, unless it is over in a moment."""
        code, text = said_in(answer)
        if seconds >= WORTH_SAYING_S and code not in self._said:
            self._said.add(code)
            again = f"; trying again in {seconds:.0f} s, Ctrl-C ends it"
            say(("waiting ", "yellow"), f"{code}: {text}{again}")


def client_of(ctx: typer.Context) -> Client:
    """The client that this run of the command line uses; closed when the command ends."""
    connection: Connection = ctx.find_root().obj
    client = connection.open()
    client.watch_pauses(PauseTeller())
    ctx.call_on_close(client.close)
    return client
