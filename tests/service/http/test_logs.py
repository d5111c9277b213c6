"""Log lines."""

import logging

from fimlora_service.http.logs import FieldFormatter


def test_log_lines_carry_their_fields(caplog):
    """An event name, then key=value, which both people and machines can read."""
    with caplog.at_level(logging.INFO):
        logging.getLogger("x").info("job.queued", extra={"job_id": "job_1", "attempt": 2})

    line = FieldFormatter().format(caplog.records[0])

    assert line.endswith('INFO job.queued job_id="job_1" attempt=2')
