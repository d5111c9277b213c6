"""What the log says of who asked."""

import json
import logging

from fimlora_jobs.logs import JsonFormatter


def test_lines_name_the_tenant_and_never_the_key(visitor, body, caplog):
    """Of a request and of what it has caused; a job's lines in workers name its owner."""
    acme = visitor(tenant="acme")
    caplog.handler.setFormatter(JsonFormatter("service"))
    caplog.set_level(logging.DEBUG)
    caplog.clear()

    assert acme("POST", "/calibrate", json=body).status_code == 202

    lines = [json.loads(line) for line in caplog.text.splitlines()]
    events = {line["event"]: line for line in lines}
    assert events["request.done"]["tenant"] == events["job.queued"]["tenant"] == "acme"
    assert "fl_" not in caplog.text
