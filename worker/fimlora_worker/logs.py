"""Logging of the worker's processes: RQ's own loggers, and what libraries print."""

import io
import logging
import sys
from typing import IO

from fimlora_jobs import logs
from fimlora_jobs.attempts import is_hand, job_id_of, parse_rq_job_id
from fimlora_worker.settings import Settings

log = logging.getLogger(__name__)
# Ours say what matters; RQ's news repeat it and tell of every clean-up.
RQ_LOGGERS = ("rq.worker", "rq.job", "rq.queue")
# It calls an attempt abandoned whose job our own reaper has queued again.
RQ_CLEANUP = "rq.registry"


def configure_logging(
    settings: Settings, *, process: str, stream: IO[str] | None = None
) -> None:
    """Log in the one format; RQ sees that and adds no handlers of its own."""
    level = settings.log_level
    logs.configure_logging(level, process=process, form=settings.log_format, stream=stream)
    for name in RQ_LOGGERS:
        logging.getLogger(name).setLevel(rq_level(level))
    logging.getLogger(RQ_CLEANUP).setLevel(level if level == "DEBUG" else "ERROR")


def rq_level(level: str) -> str:
    """RQ's own level: its news are wanted only by whoever looks for a fault."""
    return "WARNING" if level == "INFO" else level


def rq_fields(rq_id: str) -> dict[str, object]:
    """What a line says of the RQ job it is about: the attempt it carries, or the hand it is."""
    if is_hand(rq_id):
        return {"job_id": job_id_of(rq_id), "hand": rq_id}
    job_id, attempt = parse_rq_job_id(rq_id)
    return {"job_id": job_id, "attempt": attempt}


def capture_prints() -> None:
    """Make log lines of what is printed in this process; call it after `configure_logging`."""
    sys.stdout, sys.stderr = PrintedLines("stdout"), PrintedLines("stderr")


class PrintedLines(io.TextIOBase):
    """A stream whose lines are logged; a progress bar's count, too."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._begun = ""

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Log each line that is complete."""
        *lines, self._begun = (self._begun + text).replace("\r", "\n").split("\n")
        for line in filter(str.strip, lines):
            log_printed(line, stream=self._stream)
        return len(text)


def log_printed(line: str, **fields: object) -> None:
    """Log a line that a library has printed."""
    log.info("output", extra={"text": line.rstrip(), **fields})
