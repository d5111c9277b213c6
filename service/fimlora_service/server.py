"""One application on one socket: from the first answer to the last."""

import gc
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from threading import Event, Thread
from types import FrameType

import uvicorn
from fastapi import FastAPI

from fimlora_jobs.logs import configure_logging
from fimlora_jobs.telemetry import open_provider
from fimlora_service.app import create_app
from fimlora_service.http.connections import Connections, room_for
from fimlora_service.settings import Settings

SHUTDOWN_S = 5
# What some requests need, most do not, and takes a tenth of a second or more to import.
LATER = (
    "fimlora_service.plans.drafting",  # numpy
    "fimlora_service.resolve.hub",
    "pyarrow.parquet",
)
logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """A server that is quick to start and to stop.

    It answers before all that some requests need is imported, which is made up for at once
    beside the first requests. Told to stop, it lets go of long polls and streams: without that
    a restart would wait for the longest of them, up to a minute.
    """

    def __init__(self, config: uvicorn.Config, *, stopping: Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the socket."""
        await super().startup(sockets)
        if self.started:  # a process that is about to end imports nothing
            Thread(target=warm_up, name="warm-up", daemon=True).start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take the signal."""
        self._stopping.set()
        super().handle_exit(sig, frame)


def warm_up() -> None:
    """Import what requests will need; a request that needs it meanwhile waits for just that."""
    try:
        for name in LATER:
            import_module(name)
    except Exception:
        # The request that needs it will say so, too, and all others can do without.
        logger.exception("warm_up.failed")
    finally:
        # What is there now stays for good; a search of it would hold requests up for 0.2 s.
        gc.freeze()
        gc.enable()


def serve(settings: Settings, *, extend: Callable[[FastAPI], None] | None = None) -> None:
    """Serve until told to stop.

    Args:
        settings: Configuration.
        extend: Adds to the application before it starts.
    """
    configure_logging(settings.log_level, process="service", form=settings.log_format)
    stopping = Event()
    traces = open_provider("service") if settings.are_traces_wanted else None
    app = create_app(settings, stopping=stopping, traces=traces)
    if extend:
        extend(app)
    connections = Connections(
        at_most=room_for(settings.max_connections), patience_s=settings.request_timeout_s
    )
    config = uvicorn.Config(
        connections.watch(app),
        http=connections.protocol(),
        ws="none",
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=list(settings.proxies),
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    with suppress(KeyboardInterrupt):  # raised once more after all has ended in good order
        Server(config, stopping=stopping).run()
