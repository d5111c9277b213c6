"""Log lines: a time, a level, a dotted event name, then ``key=value`` fields."""

import json
import logging
import sys

from fimlora_service.http.middleware import current_request_id

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class FieldFormatter(logging.Formatter):
    """Append the fields given as ``extra``, and the id of the request being handled."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging calls it
        """The first line of a record, with its fields."""
        fields = {key: value for key, value in vars(record).items() if key not in _PLAIN}
        if request_id := current_request_id.get():
            fields["request_id"] = request_id
        text = " ".join(
            f"{key}={json.dumps(value, default=str)}" for key, value in fields.items()
        )
        return f"{super().formatMessage(record)} {text}".rstrip()


def configure_logging(level: str) -> None:
    """Send everything to stderr in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FieldFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("httpx2", "httpcore2", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
