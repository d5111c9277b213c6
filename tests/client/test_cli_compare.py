"""``fimlora compare`` on the real app, with a worker behind it."""

import json
from xml.etree import ElementTree

import pytest

from fimlora.methods.registry import METHODS

REQUEST = ["--budget", "4"]


def table(text):
    """The rows of the methods and of the pairs that are printed."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return [line for line in lines if line[0] in METHODS]


def test_a_file_is_measured_once_and_compared(run, rows, tmp_path):
    """A line per method, a line per pair, and files that say the same."""
    folder = tmp_path / "compared"

    result = run("compare", "tiny", rows, *REQUEST, "--batches", "2", "--output", folder)

    assert result.exit_code == 0, result.output
    data = json.loads((folder / "compare.json").read_text())
    ElementTree.parse(folder / "compare.svg")
    lines = table(result.stdout)
    methods, pairs = lines[: len(data["methods"])], lines[len(data["methods"]) :]
    assert [line[:3] for line in methods] == [
        [row["method"], f"{row['ranks']:,}", f"{row['parameters']:,}"]
        for row in data["methods"]
    ]
    assert [line[:3] for line in pairs] == [
        [pair["a"], pair["b"], f"{pair['overlap']:.1%}"] for pair in data["pairs"]
    ]
    assert "compare.svg" in result.stderr


def test_a_job_that_has_measured_is_compared_at_once(run, rows, tmp_path):
    """With what its statistics give; the files are written here."""
    run("compare", "tiny", rows, *REQUEST, "--batches", "2")
    listed = json.loads(run("jobs", "--json").stdout)
    job_id = next(job["id"] for job in listed if job["kind"] == "comparison")
    folder = tmp_path / "again"

    shown = run("show", job_id)
    again = run("compare", job_id, *REQUEST, "--methods", "fim,coherent", "--output", folder)
    as_json = run("compare", job_id, *REQUEST, "--json")

    assert again.exit_code == 0, again.output
    assert [line[0] for line in table(again.stdout)] == ["fim", "coherent", "fim"]
    data = json.loads((folder / "compare.json").read_text())
    assert [row["method"] for row in data["methods"]] == ["fim", "coherent"]
    ElementTree.parse(folder / "compare.svg")
    assert json.loads(as_json.stdout)["job_id"] == job_id
    assert len(table(shown.stdout)) > len(METHODS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny"], "tiny is no id of a job: give a model and a dataset, or job_"),
        (["tiny", "ROWS", "--methods", "fim,best"], "--methods entry 2: must be 'fim', "),
        (["tiny", "ROWS", "--methods", "fim"], "at least two"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_sent(run, rows, arguments, said):
    """With the exit code of wrong usage."""
    result = run("compare", *[rows if a == "ROWS" else a for a in arguments], *REQUEST)

    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
