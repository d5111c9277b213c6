"""Run the service: ``python -m fimlora_service``."""

import argparse

import uvicorn

from fimlora_service.app import create_app
from fimlora_service.logs import configure_logging
from fimlora_service.settings import Settings

ENVIRONMENT = """environment:
  REDIS_URL                 redis://, rediss:// or unix:// address of Redis or Valkey
  FIMLORA_DATA_DIR          folder shared with the workers (default .fimlora)
  FIMLORA_HOST, FIMLORA_PORT, FIMLORA_LOG_LEVEL
  FIMLORA_MAX_BODY_BYTES    limit of a JSON body
  FIMLORA_MAX_UPLOAD_BYTES  limit of an uploaded dataset
  HF_ENDPOINT, HF_TOKEN     address of the model hub, token for gated repositories
"""
# Long polls and streams would hold a restart up for as long as a minute.
SHUTDOWN_S = 5


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
    uvicorn.run(
        create_app(settings),
        host=settings.host if arguments.host is None else arguments.host,
        port=settings.port if arguments.port is None else arguments.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


if __name__ == "__main__":
    main()
