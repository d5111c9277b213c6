"""What libraries print in a worker's processes."""

import json
import logging
import subprocess
import sys

import pytest

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


def test_rq_does_not_call_a_job_abandoned_that_goes_on(tmp_path):
    """Its clean-up knows nothing of our reaper; what fails there is told all the same."""
    script = (
        "import logging; from fimlora_worker.logs import configure_logging;"
        "from fimlora_worker.settings import Settings;"
        "configure_logging(Settings(log_format='json'), process='worker');"
        "logging.getLogger('rq.registry').warning('due to AbandonedJobError');"
        "logging.getLogger('rq.registry').error('a clean-up failed')"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    (line,) = done.stderr.splitlines()
    assert json.loads(line)["event"] == "a clean-up failed"


def test_kernels_of_other_machines_are_no_news(tmp_path):
    """Where torchao is installed, whatever imports transformers would tell of them."""
    pytest.importorskip("torchao", reason="needs torchao: make quantised")
    script = (
        "from fimlora_jobs.logs import configure_logging;"
        "configure_logging('INFO', process='worker', form='json');"
        "import torchao.quantization"
    )

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert (done.stdout, done.stderr) == ("", "")
