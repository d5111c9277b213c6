"""``fimlora evaluate`` and ``client.evaluate`` on the real app, with the real engine."""

import html
import json
import re

import pytest

from fimlora_client.errors import JobNotFound, ValidationFailed
from fimlora_contract.evaluations import FULL, QUICK
from support.jobs import DISTINCT, write_jsonl
from support.seeing import data_url, pixels, png

SMALL = ["--quick", "--steps", "2", "--seeds", "2", "--batches", "2",
         "--learning-rates", "1e-3,2e-3"]  # fmt: skip
WRITTEN = ("report.html", "evaluation.json", "runs.csv", "curves.csv")


@pytest.fixture
def file(tmp_path):
    """Rows of which no text stands twice."""
    return write_jsonl(tmp_path / "distinct.jsonl", DISTINCT)


def test_one_command_leads_from_rows_to_a_verdict(run, file, tmp_path):
    """Tables and, last, the verdict on standard output; the files in the folder."""
    folder = tmp_path / "findings"
    result = run("evaluate", "tiny", file, "--budget", "4", *SMALL, "--output", folder)

    assert result.exit_code == 0, result.output
    found = json.loads((folder / "evaluation.json").read_text())
    text = " ".join(result.stdout.split())
    assert text.endswith(" ".join(found["verdict"]["sentence"].split()))
    assert " ".join(found["levers"]["sentence"].split()) in text
    for arm in ("fim", "uniform", "random"):
        assert f"\n{arm} " in result.stdout
    assert "fim - uniform" in result.stdout
    assert max(map(len, result.stdout.split("\n\n")[0].splitlines())) <= 80
    assert {path.name for path in folder.iterdir()} == set(WRITTEN)
    assert found["verdict"]["sentence"] in html.unescape((folder / "report.html").read_text())
    assert f"succeeded: {found['n_runs']} runs" in result.stderr
    job = re.search(r"job_[0-9a-f]{23}", result.stderr)[0]
    fetched, refetched = (run("fetch", job, "--output", tmp_path / "fetched") for _ in range(2))
    assert fetched.exit_code == 0, fetched.output
    report = (folder / "report.html").read_text()
    assert (tmp_path / "fetched/report.html").read_text() == report
    assert "4 of 4 files were right and left untouched" in refetched.stderr

    again = run("evaluate", "tiny", file, "--budget", "4", *SMALL)
    job_id = again.stderr.split("answered from the cache by ")[1].split()[0]
    assert run("show", job_id).stdout.endswith(again.stdout)
    assert job_id in run("jobs", "--kind", "evaluation").stdout
    assert job_id not in run("jobs", "--kind", "calibration").stdout


def test_a_plan_needs_no_budget(run, file, client):
    """Its parameters are the budget; whatever it is named by."""
    run("calibrate", "tiny", file, "--budget", "4", "--pin", "mine:prod")
    [job] = client.jobs.list().data
    spent = job.result.rank_map.spent["parameters"]

    ids = set()
    for reference in (job.id, "mine:prod", job.result.digest):
        result = run(
            "evaluate", "tiny", file, "--plan", f"ours={reference}", "--no-wait", *SMALL
        )
        assert result.exit_code == 0, result.output
        ids.add(result.stdout.strip())

    [id_] = ids  # equal content, whatever it is called
    asked = client.evaluations.retrieve(id_)
    assert asked.request["budget"]["parameters"] == spent
    assert asked.resolved["plans"] == {"ours": job.result.digest}


def test_a_plan_of_another_scale_needs_that_scale(run, file, client):
    """The refusal says so, and the option gives it."""
    handle = client.calibrate(
        base_model="tiny",
        dataset=client.datasets.upload(file).id,
        budget=4,
        adapter={"scale": 4},
    )
    handle.wait()
    asked = ("evaluate", "tiny", file, "--plan", f"ours={handle.id}", "--no-wait", *SMALL)

    refused, accepted = run(*asked), run(*asked, "--scale", "4")

    assert "scale 4" in refused.output
    assert accepted.exit_code == 0, accepted.output
    assert client.evaluations.retrieve(accepted.stdout.strip()).request["adapter"]["scale"] == 4


def test_the_help_states_the_defaults_of_the_contract(run):
    """And whose batch size and length these are."""
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", run("evaluate", "--help").output).split())

    assert f"Steps of a run ({FULL.n_steps}; quick: {QUICK.n_steps})." in text
    assert f"Final runs per arm ({FULL.n_seeds}; quick: {QUICK.n_seeds})." in text
    assert f"At most ({FULL.n_eval_rows}; quick: {QUICK.n_eval_rows})." in text
    assert "Rows per step of training (16); measuring has its own, 8." in text
    assert "Tokens per row in training (64); measuring has its own, 512." in text
    assert f"Write {', '.join(WRITTEN[:-1])} and {WRITTEN[-1]} into this folder." in text


def test_batches_by_themselves_take_their_options(run, file, client):
    """As for a calibration."""
    more = ("--batches", "auto", "--tolerance", "0.2", "--max-batches", "16", "--no-wait")
    result = run("evaluate", "tiny", file, "--budget", "4", *more)

    assert result.exit_code == 0, result.output
    asked = client.evaluations.retrieve(result.stdout.strip()).request["calibration"]
    assert (asked["n_batches"], asked["tolerance"], asked["max_batches"]) == ("auto", 0.2, 16)


def test_an_estimate_tells_the_runs_and_starts_nothing(run, file, client):
    """How many, of how many steps."""
    result = run("evaluate", "tiny", file, "--budget", "4", "--estimate")

    assert "27 to 33 runs of 64 steps, 3 arms" in result.stdout
    assert client.evaluations.list().data == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--budget", "4", "--learning-rates", "fast"], "are not numbers with commas between"),
        (["--budget", "4", "--methods", "best"], "methods"),
        (["--budget", "4", "--seeds", "1"], "--seeds: must be at least 2"),
        (["--budget", "4", "--eval-split", "test"], "eval_split"),
        (["--budget", "4", "--plan", "mine"], "NAME=PLAN"),
        ([], "how much may it spend?"),
    ],
    ids=["rates", "method", "seeds", "split", "plan", "budget"],
)
def test_a_wrong_option_is_refused_before_anything_is_uploaded(run, file, client, wrong, said):
    """The message says what is allowed."""
    result = run("evaluate", "tiny", file, *wrong)

    assert result.exit_code in {1, 2}
    assert said in " ".join(result.output.split())
    assert client.datasets.list().data == []


def test_the_client_waits_for_what_was_found(client, file):
    """With keyword arguments; every event tells runs, and the list has the evaluation."""
    upload = client.datasets.upload(file)
    seen = []
    handle = client.evaluate(
        base_model="tiny", dataset=upload.id, budget=4, quick=True, steps=2, seeds=2,
        learning_rates=[1e-3, 2e-3], calibration={"n_batches": 2},
    )  # fmt: skip
    result = handle.wait(on_progress=seen.append)

    assert result.verdict.sentence
    assert client.evaluations.retrieve(handle.id).result == result
    assert [job.id for job in client.evaluations.list().data] == [handle.id]
    told = [event.progress.runs for event in handle.events() if event.progress]
    assert any(runs and runs.n_steps == 2 for runs in told)
    assert seen[-1].id == handle.id


def test_a_wrong_field_is_refused_here_as_by_the_service(client):
    """With the same exception."""
    with pytest.raises(ValidationFailed, match="seeds: must be at least 2"):
        client.evaluate(base_model="tiny", dataset="local:x", budget=4, seeds=1)
    with pytest.raises(JobNotFound):
        client.evaluations.retrieve("job_none")


def test_rows_with_images_are_refused_before_anything_is_queued(run, tmp_path, client):
    """In a sentence that says what to do instead."""
    shown = data_url(png(pixels(0, 2, 2)))
    rows = [{"text": f"red {n}", "image": shown} for n in range(80)]
    file = write_jsonl(tmp_path / "shown.jsonl", rows)

    refused = run("evaluate", "tiny", file, "--budget", "4", *SMALL)

    assert refused.exit_code != 0
    said = " ".join(refused.stderr.split())
    assert "evaluations train on text alone, and the rows have images or sounds" in said
    assert "Traceback" not in said
    assert client.jobs.list().data == []
