"""Log lines: the same fields in both forms, and one line whatever is in them."""

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fimlora_jobs.logs import JsonFormatter, TextFormatter, in_context, log_context

TEXTS = st.text(alphabet=st.characters(exclude_categories=[]), max_size=40)


def record(event: str = "job.queued", **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("fimlora_x", logging.WARNING, "f", 1, event, (), None)
    vars(made).update(extra)
    return made


def parsed(made: logging.LogRecord) -> dict[str, object]:
    return json.loads(JsonFormatter("service").format(made))


def test_a_line_says_when_what_who_and_for_which_request():
    """The fields that a search begins with come first, those of the event after them."""
    with log_context(request_id="r1", job_id="job_1", tenant=""), log_context(attempt=2):
        line = parsed(record(n=3))
        text = TextFormatter("worker").format(record(n=3))

    assert list(line) == [
        "time", "level", "event", "logger", "process", "pid", "request_id", "job_id",
        "attempt", "n",
    ]  # fmt: skip
    assert datetime.fromisoformat(str(line["time"])).tzinfo == UTC
    assert (line["level"], line["event"], line["attempt"]) == ("warning", "job.queued", 2)
    assert 'job.queued logger="fimlora_x" process="worker"' in text
    assert text.endswith('request_id="r1" job_id="job_1" attempt=2 n=3')
    assert in_context("job_id") is None


@given(event=TEXTS, value=TEXTS)
def test_no_text_makes_a_line_of_its_own(event, value):
    """Paths, ids and reasons come from clients; a forged line would be one of ours."""
    made = record(event.replace("%", ""), path=value)

    for formatter in (JsonFormatter("service"), TextFormatter("service")):
        line = formatter.format(made)
        assert line.isprintable()
    assert parsed(made)["path"] == value


def test_a_traceback_is_one_field_and_in_text_it_is_indented():
    """Also where the error's own text has lines that look like ours."""
    made = record()
    try:
        raise ValueError("first\n2026-01-01T00:00:00.000Z info forged")
    except ValueError:
        made.exc_info = sys.exc_info()

    assert "forged" in str(parsed(made)["exception"])
    head, *trace = TextFormatter("service").format(made).splitlines()
    assert head.endswith('process="service" pid=' + str(made.process))
    assert all(line.startswith("    ") for line in trace)


def test_no_field_can_pass_for_another():
    """What an event adds cannot overwrite what identifies the line."""
    with log_context(job_id="job_1"):
        line = parsed(record(pid="forged", job_id="job_2", time="never"))

    assert line["pid"] != "forged"
    assert line["time"] != "never"
    assert line["job_id"] == "job_1"


def test_what_json_cannot_hold_is_shown_as_text():
    """A line that cannot be read by a strict parser is no line."""
    line = JsonFormatter("x").format(record(a=float("nan"), b={1}, c="y" * 10_000))

    found = json.loads(line, parse_constant=pytest.fail)
    assert (found["a"], found["b"]) == ("nan", "{1}")
    assert len(found["c"]) < 5_000


@pytest.mark.parametrize(("form", "is_json"), [("json", True), ("auto", True), ("text", False)])
def test_whatever_ends_a_process_is_a_line_of_the_same_form(form, is_json):
    """Warnings, a thread that dies and the error that ends the process, too."""
    script = (
        "import threading, warnings; from fimlora_jobs.logs import configure_logging;"
        f"configure_logging('INFO', process='p', form={form!r}); warnings.warn('old');"
        "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join(); raise OSError('end')"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    lines = done.stderr.splitlines()
    if is_json:
        found = [json.loads(line) for line in lines]
        assert [line["level"] for line in found] == ["warning", "error", "critical"]
        assert "OSError: end" in found[-1]["exception"]
    else:
        heads = [line for line in lines if not line.startswith("    ")]
        assert [head.split()[1] for head in heads] == ["warning", "error", "critical"]
