"""How commands reach the service."""

from collections.abc import Callable
from dataclasses import dataclass

import typer

from fimlora_client.aio.client import AsyncClient
from fimlora_client.blocking.client import Client
from fimlora_client.context import Context


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


def client_of(ctx: typer.Context) -> Client:
    """The client that this run of the command line uses; closed when the command ends."""
    connection: Connection = ctx.find_root().obj
    client = connection.open()
    ctx.call_on_close(client.close)
    return client
