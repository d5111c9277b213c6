"""The script for a GPU, in its small form: every part gives rows, and no fault ends the run."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu"


def run(out: Path, *arguments: str) -> list[dict]:
    """The rows that the script writes."""
    command = [sys.executable, str(SCRIPT), "--form", "cpu", "--out", str(out), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "| section |" in done.stdout
    return json.loads(out.read_text())["rows"]


def test_the_small_form_measures_and_streams(tmp_path):
    """Both executors run by the code that a GPU runs, and agree to the last bit."""
    rows = run(tmp_path / "gpu.json", "--sections", "resident", "streamed")

    seconds = {(row["section"], row["way"]): row["seconds"] for row in rows}
    for way in ("bare", "sampled", "sketched", "exact", "peft"):
        assert seconds["resident", way] > 0, rows
    assert seconds["streamed", "streamed"] > 0
    same = [row["note"] for row in rows if row["way"].startswith("statistics of")]
    assert same == ["the same to the last bit"]
    goals = {goal["of"] for row in rows for goal in row["goals"]}
    assert {"over_bare", "peft_over_it", "over_resident"} <= goals


def test_what_is_late_is_a_row(tmp_path):
    """A part for which no time is left is not begun."""
    rows = run(tmp_path / "gpu.json", "--sections", "mixture", "--limit", "1")
    assert [(row["section"], row["note"]) for row in rows] == [("mixture", "no time was left")]
