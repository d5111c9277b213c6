"""The head of a job: fitted before it is measured, kept with its statistics, and no other job's."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fimlora import Statistics
from fimlora_worker.inputs.calibration_data import Drawn
from fimlora_worker.job.preparation import head_batches
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.jobs import LABELLED, Jobs

MEASURED = {"n_batches": 2, "batch_size": 4}
WEIGHTS = {"weights": True}
OTHER = [row | {"label": (n // 3) % 3} for n, row in enumerate(LABELLED)]


def inline(rows):
    return {"source": "inline", "rows": rows}


def folder_of(jobs: Jobs, job_id: str):
    result = jobs.get(job_id).to_job().result
    assert result is not None, jobs.get(job_id).to_job().error
    return jobs.data_dir / "artifacts" / result.digest.replace(":", "-")


def head_of(jobs: Jobs, job_id: str):
    return jobs.get(job_id).to_job().result.rank_map.provenance["head"]


def weights_of(jobs: Jobs, job_id: str):
    """The head as the adapter has it, and as the statistics keep it."""
    folder = folder_of(jobs, job_id)
    stored = Statistics.load(folder / "statistics.safetensors").head_weights
    written = load_file(folder / "adapter_model.safetensors")
    return written, stored


def test_an_adapter_has_the_head_that_was_fitted(jobs: Jobs, run_queue):
    """Also as stock PEFT loads it, over a base with a head of any seed."""
    job_id = jobs.submit(calibration=MEASURED, adapter=WEIGHTS)
    run_queue()

    written, stored = weights_of(jobs, job_id)
    assert stored.keys() == {"classifier.weight", "classifier.bias"}
    for name, values in stored.items():
        assert np.array_equal(written[f"base_model.model.{name}"].double().numpy(), values)
    head = head_of(jobs, job_id)
    assert (head["kind"], head["rows"]) == ("fitted", len(LABELLED) - 8)  # 8 are measured
    base = AutoModelForSequenceClassification.from_pretrained(
        jobs.data_dir / "models" / "tiny", num_labels=3
    )
    adapted = PeftModel.from_pretrained(base, folder_of(jobs, job_id))
    kept = adapted.base_model.model.classifier.modules_to_save["default"]
    assert torch.equal(kept.weight, torch.tensor(stored["classifier.weight"]).float())


def test_both_executors_and_a_later_plan_have_one_head(jobs: Jobs, run_queue):
    """Also where it is written for a job that measured nothing, as its statistics have it."""
    resident, streamed = (
        jobs.submit(calibration=MEASURED | {"executor": executor}, adapter=WEIGHTS)
        for executor in ("resident", "streamed")
    )
    plain = jobs.submit(calibration=MEASURED, budget=6)
    run_queue()
    again = jobs.submit(calibration=MEASURED, budget=6, adapter=WEIGHTS, statistics_from=plain)
    run_queue()

    assert folder_of(jobs, resident) == folder_of(jobs, streamed)
    stages = [e.progress.stage for e in jobs.store.events(again) if e.progress]
    assert "fitting_head" not in stages
    wanted, found = weights_of(jobs, resident)[0], weights_of(jobs, again)[0]
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(
            found[f"base_model.model.{name}"], wanted[f"base_model.model.{name}"]
        )
    assert head_of(jobs, again) == head_of(jobs, resident)


def test_a_loaded_model_lends_its_head_to_no_other_job(jobs: Jobs, run_queue):
    """The same model, other labels, and a fresh head: what runs alone gives the same."""
    requests = [
        {"dataset": inline(LABELLED)},
        {"dataset": inline(OTHER)},
        {"dataset": inline(LABELLED), "head": "fresh"},
    ]
    digests = []
    for order in ([0, 1, 2], [2, 1, 0]):
        process_for.cache_clear()
        ids = {}
        for n in order:
            request = dict(requests[n])
            calibration = MEASURED | {"head": request.pop("head", "fitted")}
            ids[n] = jobs.submit(calibration=calibration, adapter=WEIGHTS, **request)
        run_queue()
        assert process_for(Settings()).models.n_loads == 1
        digests.append([jobs.get(ids[n]).json_field("result")["digest"] for n in range(3)])

    assert digests[0] == digests[1]
    assert len({*digests[0]}) == 3


def test_rows_besides_those_that_are_measured_make_it(jobs: Jobs, run_queue):
    """As many as are wanted, of others where that is enough; the same rows are measured."""
    few, eight, many = (
        jobs.submit(calibration=MEASURED | {"head_rows": n}) for n in (5, 8, 30)
    )
    fresh = jobs.submit(calibration=MEASURED | {"head": "fresh"})
    run_queue()

    assert [head_of(jobs, id_)["rows"] for id_ in (few, eight, many)] == [5, 8, 30]
    assert head_of(jobs, fresh) == {"kind": "fresh", "left_as_drawn": ["classifier"]}
    assert [e.progress.stage for e in jobs.store.events(fresh) if e.progress].count(
        "fitting_head"
    ) == 0
    facts = [jobs.get(id_).to_job().result.rank_map.provenance for id_ in (few, many, fresh)]
    for provenance in facts:
        provenance.pop("head")
    assert facts[0] == facts[1] == facts[2]
    assert not Statistics.load(folder_of(jobs, fresh) / "statistics.safetensors").head_weights


@pytest.mark.parametrize("model", ["decoder", "tiny"])
def test_a_regression_is_fitted_too(jobs: Jobs, run_queue, model):
    rows = [{"text": row["text"], "label": n % 7 / 3 + 0.1} for n, row in enumerate(LABELLED)]
    job_id = jobs.submit(model=model, dataset=inline(rows), calibration=MEASURED)
    run_queue()

    assert head_of(jobs, job_id)["held_out"].keys() == {"loss", "r2"}


def test_a_language_model_has_its_own_head(jobs: Jobs, run_queue):
    texts = inline([{"text": f"w{n} w{n % 7} w3"} for n in range(40)])
    job_id = jobs.submit(model="decoder", dataset=texts, calibration=MEASURED)
    run_queue()

    assert head_of(jobs, job_id) == {"kind": "pretrained"}


def test_rows_that_nothing_can_be_fitted_to_are_refused_by_name(jobs: Jobs, run_queue):
    """What was asked is possible, with a head as it was drawn."""
    rows = inline([row | {"label": 1} for row in LABELLED] + [{"text": "w1", "label": 0}])
    wanted = MEASURED | {"head_rows": 8, "seed": 1}
    fitted, fresh = (
        jobs.submit(dataset=rows, calibration=wanted | {"head": head})
        for head in ("fitted", "fresh")
    )
    run_queue()

    error = jobs.get(fitted).to_job().error
    assert error is not None
    assert error.code == "dataset_empty"
    assert "all 8 rows of the head have the same labels" in error.detail
    assert "fresh" in error.detail
    assert jobs.get(fresh).to_job().status == "succeeded"


def test_rounds_end_with_the_reason_of_the_head(jobs: Jobs, run_queue):
    """At the first try: it is fitted before the first round, and no later one can do better."""
    rows = inline([row | {"label": 1} for row in LABELLED] + [{"text": "w1", "label": 0}])
    wanted = {"n_batches": "auto", "max_batches": 2, "batch_size": 4, "head_rows": 8, "seed": 1}
    job_id = jobs.submit(dataset=rows, calibration=wanted)
    run_queue()

    error = jobs.get(job_id).to_job().error
    assert error is not None
    assert "all 8 rows of the head have the same labels" in error.detail


@pytest.mark.parametrize(
    ("n_measured", "n_further", "n_rows", "wanted"),
    [
        (512, 88, 1024, (0, 88)),
        (512, 32, 1024, (0, 32)),
        (512, 31, 1024, (512, 31)),
        (512, 31, 100, (69, 31)),
        (512, 0, 1024, (512, 0)),
        (8, 8, 1024, (0, 8)),
        (8, 7, 1024, (8, 7)),
        (512, 600, 100, (0, 100)),
        (512, 5, 5, (0, 5)),
    ],
)
def test_a_head_is_fitted_on_other_rows_where_there_are_some(
    n_measured, n_further, n_rows, wanted
):
    """Alone from 32 on, or as many as are measured; else with those that are measured last."""
    rows = [{"input_ids": [n + 1], "labels": 0} for n in range(n_measured + n_further)]
    drawn = Drawn(rows[:n_measured], 0, rows[n_measured:])

    found = head_batches(drawn, n_rows=n_rows, batch_size=7)

    ids = {int(i) - 1 for batch in found for i in batch["input_ids"][:, 0]}
    measured = {i for i in ids if i < n_measured}
    assert (len(measured), len(ids - measured)) == wanted
    assert found.n_measured == len(measured)
    assert measured == set(range(n_measured - len(measured), n_measured))


@pytest.mark.parametrize(
    ("calibration", "rows", "measured"),
    [
        ({"n_batches": 2}, 40, 0),
        ({"n_batches": 8}, 48, 32),
        ({"n_batches": 64}, 48, 48),
        ({"n_batches": "auto", "tolerance": 1e-9}, 48, 48),
        ({"n_batches": "auto", "tolerance": 0.9}, 48, 16),
        ({"n_batches": "auto", "tolerance": 0.9, "head_rows": 20}, 20, 0),
    ],
)
def test_a_plan_says_whether_its_head_has_seen_measured_rows(
    jobs: Jobs, run_queue, calibration, rows, measured
):
    """Those that were measured in the end: rounds may stop before they come to them."""
    job_id = jobs.submit(calibration={"batch_size": 4} | calibration)
    run_queue()

    head = head_of(jobs, job_id)
    assert (head["rows"], head["measured_rows"]) == (rows, measured)
    warnings = jobs.get(job_id).to_job().result.rank_map.warnings
    said = [w.message for w in warnings if w.code == "head_saw_measured"]
    assert len(said) == (measured > 0)
    assert all(f"{rows} rows of which {measured} are measured" in text for text in said)
    stored = Statistics.load(folder_of(jobs, job_id) / "statistics.safetensors")
    assert {part.head["measured_rows"] for part in (stored, *stored.parts.values())} == {
        measured
    }
