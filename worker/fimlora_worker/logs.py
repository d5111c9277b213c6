"""Logging of a worker process: one line per event, to standard error."""

import logging

FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"
# They report every request, loaded tensor and scheduler step as news.
QUIET = ("httpx", "httpx2", "httpcore", "urllib3", "filelock", "transformers", "datasets")


def configure_logging(level: str) -> None:
    """Log to standard error; RQ sees that and adds no handlers of its own."""
    logging.basicConfig(level=level, format=FORMAT)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
