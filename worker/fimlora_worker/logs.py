"""Logging of a worker process: one line per event, to standard error."""

import logging

FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"
# They report every request, loaded tensor and scheduler step as news.
QUIET = ("httpx", "httpx2", "httpcore", "urllib3", "filelock", "datasets")
# Ours say what matters; RQ's news repeat it and tell of every clean-up.
RQ_LOGGERS = ("rq.worker", "rq.job", "rq.queue", "rq.registry")


def configure_logging(level: str) -> None:
    """Log to standard error; RQ sees that and adds no handlers of its own."""
    logging.basicConfig(level=level, format=FORMAT)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in RQ_LOGGERS:
        logging.getLogger(name).setLevel(rq_level(level))


def rq_level(level: str) -> str:
    """RQ's own level: its news are wanted only by whoever looks for a fault."""
    return "WARNING" if level == "INFO" else level
