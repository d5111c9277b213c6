"""``fimlora sweep`` on the real app, with a worker behind it."""

import csv
import json

import pytest

REQUEST = ["--budget", "4", "--aggregations", "mean,max", "--floors", "1,2"]


def table(text):
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return [line for line in lines if line[0] in {"mean", "max", "l2"}]


def test_a_file_is_measured_once_and_swept(run, rows, tmp_path):
    """A line per plan, and a file with the same."""
    file = tmp_path / "out" / "sweep.csv"

    result = run("sweep", "tiny", rows, *REQUEST, "--batches", "3", "--output", file)

    assert result.exit_code == 0, result.output
    found = list(csv.DictReader(file.read_text().splitlines()))
    lines = table(result.stdout)
    assert [line[:3] for line in lines] == [
        [row["aggregation"], row["n_batches"], row["r_min"]] for row in found
    ]
    assert [(row["n_batches"], row["aggregation"]) for row in found] == [
        (n, kind) for kind in ("mean", "max") for _ in range(2) for n in "123"
    ]
    planned = [row for row in found if not row["unknown"]]
    assert len(planned) == 6 + 2
    shown = [line for line in lines if "%" in " ".join(line)]
    assert [(line[3], line[4]) for line in shown] == [
        (row["moved"], f"{float(row['overlap']):.1%}") for row in planned
    ]
    assert "against the plan of all 3 batches" in result.stderr


def test_a_job_that_has_measured_is_asked_at_once(run, rows, tmp_path):
    """The answer as JSON, printed or in a file."""
    run("sweep", "tiny", rows, *REQUEST, "--batches", "3")
    job_id = json.loads(run("jobs", "--json").stdout)[0]["id"]
    file = tmp_path / "sweep.json"

    result = run("sweep", job_id, *REQUEST, "--first-batches", "2", "--json", "-o", file)

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(file.read_text())
    assert json.loads(file.read_text())["job_id"] == job_id
    assert len(json.loads(run("jobs", "--json").stdout)) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny"], "tiny is no id of a job: give a model and a dataset, or job_"),
        (["tiny", "ROWS", "--floors", "1,two"], "--floors 1,two: give whole numbers"),
        (
            ["tiny", "ROWS", "--aggregations", "median"],
            "--aggregations entry 1: must be 'mean', ",
        ),
        (["tiny", "ROWS", "--output", "sweep.txt"], "name a .json or a .csv file"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_is_sent(run, rows, arguments, said):
    """With the exit code of wrong usage."""
    options = ["--budget", "4"]

    result = run("sweep", *[rows if a == "ROWS" else a for a in arguments], *options)

    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("command", ["calibrate", "plan"])
def test_methods_that_train_are_refused_with_the_way_to_go(run, rows, command):
    """Before anything is sent."""
    given = ["tiny", rows] if command == "calibrate" else ["job_" + "0" * 23]

    result = run(command, *given, "--budget", "4", "--method", "adalora")

    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert "method adalora moves ranks while an adapter is trained" in said
    assert "fimlora convert" in said


def test_rows_to_retain_are_uploaded_beside_the_dataset(run, rows, tmp_path):
    """A file here, as the dataset may be."""
    other = tmp_path / "kept.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    other.write_text("".join(json.dumps(x | {"text": x["text"] + " w9"}) + "\n" for x in lines))
    options = ["--budget", "4", "--batches", "2", "--retain", other]

    refused = run("calibrate", "tiny", rows, *options)
    result = run("calibrate", "tiny", rows, *options, "--method", "vila", "--json")

    assert refused.exit_code == 2
    assert "retain is read by method vila alone" in " ".join(refused.stderr.split())
    assert result.exit_code == 0, result.output
    job = json.loads(result.stdout)
    assert job["resolved"]["retain"]["source"] == "upload"
    assert job["result"]["rank_map"]["provenance"]["contrast"]["retain"]
