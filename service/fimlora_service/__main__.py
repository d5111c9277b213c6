"""Run the service: ``python -m fimlora_service``."""

import argparse
from threading import Event
from types import FrameType

import uvicorn

from fimlora_service.app import create_app
from fimlora_service.logs import configure_logging
from fimlora_service.malformed_http import HttpProtocol
from fimlora_service.settings import Settings

ENVIRONMENT = """environment:
  REDIS_URL                 redis://, rediss:// or unix:// address of Redis or Valkey
  FIMLORA_DATA_DIR          folder shared with the workers (default .fimlora)
  FIMLORA_HOST, FIMLORA_PORT, FIMLORA_LOG_LEVEL
  FIMLORA_JOB_RETENTION_DAYS  how long the record of a job is kept (default 90)
  FIMLORA_MAX_BODY_BYTES    limit of a JSON body
  FIMLORA_MAX_UPLOAD_BYTES  limit of an uploaded dataset
  FIMLORA_WEBHOOK_HOSTS     hosts that webhooks may call, separated by commas
  FIMLORA_WEBHOOK_SECRET    what webhooks are signed with
  HF_ENDPOINT, HF_TOKEN     address of the model hub, token for gated repositories
"""
SHUTDOWN_S = 5


class Server(uvicorn.Server):
    """A server that lets go of long polls and streams when it is told to stop.

    Without that a restart would wait for the longest of them, up to a minute.
    """

    def __init__(self, config: uvicorn.Config, *, stopping: Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take the signal."""
        self._stopping.set()
        super().handle_exit(sig, frame)


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(
        prog="python -m fimlora_service",
        description="Serve the fimlora HTTP API.",
        epilog=ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on (default FIMLORA_HOST)")
    parser.add_argument("--port", type=int, help="port, 0 for any (default FIMLORA_PORT)")
    arguments = parser.parse_args()
    settings = Settings()
    configure_logging(settings.log_level)
    stopping = Event()
    config = uvicorn.Config(
        create_app(settings, stopping=stopping),
        host=settings.host if arguments.host is None else arguments.host,
        port=settings.port if arguments.port is None else arguments.port,
        log_config=None,
        access_log=False,
        http=HttpProtocol,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    Server(config, stopping=stopping).run()


if __name__ == "__main__":
    main()
