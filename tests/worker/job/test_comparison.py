"""Comparisons on a worker: one set of passes, a plan per method, files that anyone may read."""

import json

import pytest

from fimlora import Budget, Statistics, compare
from fimlora.methods.registry import METHODS
from fimlora_contract.jobs import JobKind, JobStatus
from fimlora_contract.methods import ON_REQUEST
from support.jobs import Jobs

KIND = JobKind.COMPARISON


def stages(jobs: Jobs, job_id: str) -> list[str]:
    progress = [e.progress for e in jobs.store.events(job_id) if e.progress]
    return list(dict.fromkeys(p.stage.value for p in progress))


def folder_of(jobs: Jobs, result):
    return jobs.data_dir / "artifacts" / result.digest.replace(":", "-")


def test_all_methods_are_compared_from_one_set_of_passes(jobs: Jobs, run_queue):
    """What is committed is what the engine finds in the statistics beside it."""
    job_id = jobs.submit(kind=KIND, budget={"parameters": 4000}, allocation={"r_min": 1})
    run_queue()

    result = jobs.get(job_id).to_job().result
    folder = folder_of(jobs, result)
    data = json.loads((folder / "compare.json").read_text())
    statistics = Statistics.load(folder / "statistics.safetensors")
    found = compare(statistics, Budget("parameters", 4000), r_min=1)
    assert data == found.to_json()
    assert result.comparison.model_dump(mode="json") == data
    lacking = {*ON_REQUEST, *(n for n, method in METHODS.items() if method.needs_retain)}
    assert {row["method"] for row in data["methods"]} == set(METHODS) - lacking
    assert data["left_out"].keys() == lacking
    signals = {row["method"]: row["signal"] for row in data["methods"]}
    assert signals["fim"]["verdict"] in {"none", "weak", "task"}
    assert signals["uniform"] is None
    assert sorted(file.name for file in result.artifacts) == [
        "compare.json",
        "compare.svg",
        "statistics.safetensors",
    ]
    assert stages(jobs, job_id).count("calibrating") == 1


def test_only_what_the_methods_need_is_measured(jobs: Jobs, run_queue):
    """Two that need no spectra cost none."""
    job_id = jobs.submit(kind=KIND, methods=["fim", "uniform"])
    run_queue()

    result = jobs.get(job_id).to_job().result
    statistics = Statistics.load(folder_of(jobs, result) / "statistics.safetensors")
    assert not statistics.spectra
    assert [row.method for row in result.comparison.methods] == ["fim", "uniform"]


def test_what_another_job_has_measured_is_compared_without_its_model(jobs: Jobs, run_queue):
    """And equally: the statistics are all that a comparison looks at."""
    methods = ["fim", "spectral"]
    first = jobs.submit(allocation={"method": "spectral"})
    again = jobs.submit(kind=KIND, methods=methods, statistics_from=first)
    fresh = jobs.submit(kind=KIND, methods=methods)
    run_queue()

    assert stages(jobs, again) == ["resolving", "allocating", "writing", "committing"]
    digests = [jobs.get(id_).json_field("result")["digest"] for id_ in (again, fresh)]
    assert digests[0] == digests[1]


def test_an_equal_request_finds_it(jobs: Jobs, run_queue):
    """As of any other job."""
    job_id = jobs.submit(kind=KIND)
    run_queue()

    record = jobs.get(job_id)
    assert record.status is JobStatus.SUCCEEDED
    assert jobs.store.find_result(record.fields["request_digest"]).id == job_id


@pytest.mark.parametrize("model", ["decoder"])
def test_language_models_are_compared_too(jobs: Jobs, run_queue, model):
    """Rows of text, without labels."""
    rows = [{"text": f"w{n} w{n % 7} w3"} for n in range(24)]
    job_id = jobs.submit(kind=KIND, model=model, dataset={"source": "inline", "rows": rows})
    run_queue()

    comparison = jobs.get(job_id).to_job().result.comparison
    n_methods = sum(not m.needs_retain and n not in ON_REQUEST for n, m in METHODS.items())
    assert len(comparison.pairs) == n_methods * (n_methods - 1) / 2


def test_a_budget_that_cannot_be_met_is_refused_before_anything_is_measured(
    jobs: Jobs, run_queue
):
    """As of a calibration."""
    job_id = jobs.submit(kind=KIND, budget={"parameters": 1})
    run_queue()

    job = jobs.get(job_id).to_job()
    assert job.error.code == "budget_infeasible"
    assert "calibrating" not in stages(jobs, job_id)
