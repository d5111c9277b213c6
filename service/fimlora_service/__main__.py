"""Run the service: ``python -m fimlora_service``."""

import argparse
import gc

ENVIRONMENT = """environment:
  REDIS_URL                 redis://, rediss:// or unix:// address of Redis or Valkey
  FIMLORA_DATA_DIR          folder shared with the workers (default .fimlora)
  FIMLORA_HOST, FIMLORA_PORT, FIMLORA_LOG_LEVEL
  FIMLORA_JOB_RETENTION_DAYS  how long the record of a job is kept (default 90)
  FIMLORA_MAX_BODY_BYTES    limit of a JSON body
  FIMLORA_MAX_UPLOAD_BYTES  limit of an uploaded dataset
  FIMLORA_WEBHOOK_HOSTS     hosts that webhooks may call, separated by commas
  FIMLORA_WEBHOOK_SECRET    what webhooks are signed with
  FIMLORA_WEBHOOK_OLD_SECRET  the secret before it, while receivers change over
  HF_ENDPOINT, HF_TOKEN     address of the model hub, token for gated repositories
"""


def main() -> None:
    """Serve until told to stop."""
    # The imports make no garbage to speak of, but would be searched for it again and again:
    # that is a fifth of the time to the first answer. `warm_up` turns the collector on.
    gc.disable()
    parser = argparse.ArgumentParser(
        prog="python -m fimlora_service",
        description="Serve the fimlora HTTP API.",
        epilog=ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on (default FIMLORA_HOST)")
    parser.add_argument("--port", type=int, help="port, 0 for any (default FIMLORA_PORT)")
    given = {k: v for k, v in vars(parser.parse_args()).items() if v is not None}
    from fimlora_service.server import serve
    from fimlora_service.settings import Settings

    serve(Settings().model_copy(update=given))


if __name__ == "__main__":
    main()
