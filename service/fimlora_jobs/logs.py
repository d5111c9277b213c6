"""Log lines of service and worker: the same fields as JSON, or as text for people.

A library would do the last step only, ``json.dumps``: both forms are made from one set of
fields. A line stays one line whatever a client has put into it.
"""

import json
import logging
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import IO, Any, Literal

LogFormat = Literal["auto", "json", "text"]
LONGEST_TEXT, LONGEST_TRACEBACK = 4_000, 32_000
# Every request, opened file and loaded tensor is news to them.
QUIET = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "urllib3",
    "filelock",
    "datasets",
    "fsspec",
    # Where it is installed, all that imports transformers tells of its kernels for other machines.
    "torchao",
    "torch.utils._pytree",
)
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_context: ContextVar[Mapping[str, Any]] = ContextVar(
    "log_context", default=MappingProxyType({})
)


@contextmanager
def log_context(**fields: Any) -> Iterator[None]:
    """Put fields on every line of this thread or task inside the block; empty ones are left out."""
    said = {name: value for name, value in fields.items() if value not in (None, "")}
    token = _context.set({**_context.get(), **said})
    try:
        yield
    finally:
        _context.reset(token)


def in_context(name: str) -> Any:
    """What `log_context` says of a field; ``None`` outside of it."""
    return _context.get().get(name)


def configure_logging(
    level: str, *, process: str, form: LogFormat = "auto", stream: IO[str] | None = None
) -> None:
    """Send everything that this process logs, warns of or dies of to standard error.

    Args:
        level: Name of the lowest level that is written.
        process: What the lines call this process.
        form: ``auto`` is text on a terminal, else JSON.
        stream: Written to instead of standard error.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    is_text = form == "text" or (form == "auto" and stream.isatty())
    handler.setFormatter((TextFormatter if is_text else JsonFormatter)(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.excepthook = _log_death
    threading.excepthook = _log_thread_death


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return json.dumps(fields_of(record, self._process), default=str)


class TextFormatter(logging.Formatter):
    """Time, level and event, then ``name=value``; the lines of a traceback are indented."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record, and those of its traceback."""
        fields = fields_of(record, self._process)
        head = f"{fields.pop('time')} {fields.pop('level'):<7} {fields.pop('event')}"
        trace = fields.pop("exception", "")
        pairs = (f"{name}={json.dumps(value, default=str)}" for name, value in fields.items())
        lines = (_clean(line) for line in trace.splitlines())
        return "\n    ".join([" ".join([head, *pairs]), *lines])


def fields_of(record: logging.LogRecord, process: str) -> dict[str, Any]:
    """Everything a line says; what identifies it goes first and cannot be overwritten."""
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    said = {name: value for name, value in vars(record).items() if name not in _PLAIN}
    fields = {
        "time": time.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "event": _clean(_message(record)),
        "logger": record.name,
        "process": process,
        "pid": record.process,
    }
    for name, value in (*_context.get().items(), *said.items()):
        fields.setdefault(name, _plain(value))
    if record.exc_info and record.exc_info[0]:
        trace = logging.Formatter().formatException(record.exc_info)
        fields["exception"] = trace[-LONGEST_TRACEBACK:]
    return fields


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # a library's arguments do not fit its own words
        return f"{record.msg} {record.args}"


def _clean(text: str) -> str:
    """The text without what ends a line, moves a cursor or turns the direction of writing."""
    shown = (c if c.isprintable() else repr(c)[1:-1] for c in text[:LONGEST_TEXT])
    return "".join(shown)


def _plain(value: object) -> Any:
    """A value that JSON can hold, and a reader can bear."""
    if isinstance(value, str):
        return value[:LONGEST_TEXT]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _log_death(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("fimlora").critical("process.failed", exc_info=(kind, error, trace))


def _log_thread_death(died: threading.ExceptHookArgs) -> None:
    if died.exc_value is not None and died.exc_type is not SystemExit:
        found = (died.exc_type, died.exc_value, died.exc_traceback)
        logging.getLogger("fimlora").error("thread.failed", exc_info=found)
