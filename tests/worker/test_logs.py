"""What libraries print in a worker's processes."""

import logging
import sys

from fimlora_worker.logs import PrintedLines


def test_what_is_printed_is_logged_line_by_line(caplog, monkeypatch):
    """The states of a progress bar are lines, blank ones are not, a begun one waits."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "stdout", PrintedLines("stdout"))

    for text in ("loading", " ", "model\n", "10 %\r20 %\r\n\n", "half ", "a line\nbegun"):
        sys.stdout.write(text)

    assert [line.text for line in caplog.records] == [
        "loading model", "10 %", "20 %", "half a line",
    ]  # fmt: skip
    assert {(line.message, line.stream) for line in caplog.records} == {("output", "stdout")}
