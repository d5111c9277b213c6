"""Other plans of what a job has measured, kept as results: folders and pins, without measuring."""

import json

import pytest

from fimlora_contract.jobs import JobError
from support.jobs import LABELLED

REQUEST = ["calibrate", "tiny", "--batches", "2", "--label", "team=nlp"]


@pytest.fixture
def measured(run, rows):
    """The id of a job that has measured."""
    return json.loads(run(*REQUEST, rows, "--budget", "4", "--json").stdout)["id"]


def test_another_budget_leaves_an_adapter_and_measures_nothing(run, measured, tmp_path):
    """The folder is the one that `plan` tells of; the job took over what was measured."""
    told = json.loads(run("plan", measured, "--budget", "6", "--json").stdout)

    result = run("replan", measured, "--budget", "6", "--output", tmp_path / "a", "--json")

    assert result.exit_code == 0, result.output
    job = json.loads(result.stdout)
    assert job["result"]["digest"] == told["digest"]
    assert job["statistics_from"] == measured
    assert job["metadata"] == {"team": "nlp"}
    written = json.loads((tmp_path / "a" / "rank_map.json").read_text())
    assert written["budget"]["value"] == 6
    assert "calibrating" not in result.stderr


def test_another_plan_can_be_pinned_and_have_weights(run, measured, tmp_path):
    """All without another look at the model's gradients."""
    options = ["--weights", "--layout", "C", "--pin", "mine:next", "-o", tmp_path / "a"]

    result = run("replan", measured, *options)

    assert result.exit_code == 0, result.output
    assert (tmp_path / "a" / "adapter_model.safetensors").exists()
    fetched = json.loads(run("fetch", "--pin", "mine:next", "--format", "json").stdout)
    assert fetched["rank_map"]["budget"]["value"] == 4  # as before: it was not given
    assert fetched["rank_map"]["adapter"]["layout"] == "C"


def test_what_is_given_takes_the_place_of_what_the_job_said(run, rows):
    """One alpha for one scale, and a menu of ranks for multiples: of either there is one."""
    options = ["--scale", "4", "--multiple-of", "2", "--json"]
    planned = json.loads(run(*REQUEST, rows, "--budget", "4", *options).stdout)["id"]

    result = run(
        "replan", planned, "--alpha", "16", "--rslora", "--rank-menu", "1,3,7", "--json"
    )

    assert result.exit_code == 0, result.output
    job = json.loads(result.stdout)
    config = job["result"]["adapter_config"]
    assert (config["lora_alpha"], config["use_rslora"]) == (16, True)
    assert {module["rank"] for module in job["result"]["rank_map"]["modules"]} <= {1, 3, 7}


def test_what_would_have_to_be_measured_is_refused(run, rows, measured, client):
    """A job that is gone, one that failed, rows that changed: no job is made of any."""
    before = len(client.jobs.list().data)
    run("delete", measured)

    gone = run("replan", measured, "--budget", "6")

    assert gone.exit_code == 3
    assert len(client.jobs.list().data) == before - 1


def test_a_job_without_statistics_is_refused(run, rows, store, client):
    """It failed, so the same request would measure; one is told what to do instead."""
    failed = run(*REQUEST, rows, "--budget", "4", "--no-wait").stdout.strip()
    store.start(failed, 1, worker="test")
    store.fail(failed, 1, JobError(code="internal", detail="it broke"))

    result = run("replan", failed, "--budget", "6")

    assert result.exit_code == 1
    assert result.stderr.startswith(f"error what {failed} has measured is not kept any more")
    assert "`fimlora calibrate` measures anew" in result.stderr
    assert len(client.jobs.list().data) == 1


def test_rows_that_were_sent_inline_are_not_there_any_more(run, client):
    handle = client.calibrate(
        base_model="local:tiny", budget=4, dataset={"source": "inline", "rows": LABELLED}
    )
    handle.wait()

    result = run("replan", handle.id, "--budget", "6")

    assert result.exit_code == 1
    assert "`fimlora plan` shows another plan of it" in result.stderr


def test_a_budget_that_cannot_be_is_refused(run, measured):
    result = run("replan", measured, "--budget", "4", "--r-min", "9")

    assert result.exit_code == 2
    assert "r_min" in result.stderr
