"""Jobs that ask for initial weights: measured for them, written with them, and said first."""

import json

import pytest
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification

from fimlora import Statistics
from fimlora.adapter.initial.choose import initial_weights
from fimlora.adapter.read import load_plan
from fimlora_contract.confidence import START_CODES
from fimlora_worker.job.worker_process import process_for
from fimlora_worker.settings import Settings
from support.jobs import Jobs

PREFIX = "base_model.model."
TEXTS = {
    "model": "decoder",
    "dataset": {"source": "inline", "rows": [{"text": f"w{n} w{n % 7} w3"} for n in range(40)]},
}
CODES = {
    "eva": None,
    "lora-ga": "base_changes",
    "lora-one": "starts_moved",
    "gora": "starts_moved",
}


def folder_of(jobs: Jobs, job_id: str):
    """Where the files of a job that has succeeded lie."""
    digest = jobs.get(job_id).json_field("result")["digest"]
    file = process_for(Settings()).artifacts.local(digest, "statistics.safetensors")
    return file.parent


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize("init", sorted(CODES))
def test_what_is_written_is_made_of_what_was_measured(jobs: Jobs, run_queue, init, executor):
    """By either executor, for the seed of the request, in the layout of the request."""
    job = jobs.submit(
        calibration={"n_batches": 3, "batch_size": 4, "seed": 7, "executor": executor},
        adapter={"init": init, "layout": "C"},
    )
    run_queue()

    result = jobs.get(job).to_job().result
    folder = folder_of(jobs, job)
    tensors = load_file(folder / "adapter_model.safetensors")
    statistics = Statistics.load(folder / "statistics.safetensors")
    plan = load_plan(folder)
    wanted = initial_weights(plan, init, statistics, seed=7)
    first = [w.code for w in result.rank_map.warnings if w.code in START_CODES]
    assert first == ([CODES[init]] if CODES[init] else [])
    assert CODES[init] in {None, result.rank_map.warnings[0].code}
    assert result.rank_map.provenance["initial"]["name"] == init
    assert wanted
    for name, (A, B) in wanted.items():
        rank = len(A)
        assert (tensors[f"{PREFIX}{name}.lora_A.weight"][:rank] == A.numpy()).all()
        assert (tensors[f"{PREFIX}{name}.lora_B.weight"][:, :rank] == B.numpy()).all()
        assert not tensors[f"{PREFIX}{name}.lora_A.weight"][rank:].any()
    for part in statistics.parts.values():
        assert not [group for group in part.quantities if group.startswith("gradient_")]


def test_it_loads_with_its_fitted_head(jobs: Jobs, run_queue):
    """Stock PEFT makes a classifier of it that is the base model, moved."""
    job = jobs.submit(adapter={"init": "gora"})
    run_queue()
    base = AutoModelForSequenceClassification.from_pretrained(
        jobs.data_dir / "models" / "tiny", num_labels=3
    )

    loaded = PeftModel.from_pretrained(base, folder_of(jobs, job))

    layer = next(m for m in loaded.modules() if hasattr(m, "lora_B"))
    assert layer.lora_B["default"].weight.any()


@pytest.mark.parametrize("init", ["lora-one", "zeros"])
def test_reused_statistics_give_the_same_files(jobs: Jobs, run_queue, init):
    """A job that measured nothing writes what one that measured writes."""
    first = jobs.submit(**TEXTS, adapter={"init": init})
    again = jobs.submit(**TEXTS, budget=6, adapter={"init": init}, statistics_from=first)
    fresh = jobs.submit(**TEXTS, budget=6, adapter={"init": init})
    plain = jobs.submit(**TEXTS, budget=6, statistics_from=first)
    run_queue()

    results = [jobs.get(id_).to_job().result for id_ in (again, fresh)]
    assert results[0].digest == results[1].digest
    assert results[0].rank_map.provenance["initial"]["name"] == init
    assert "initial" not in jobs.get(plain).to_job().result.rank_map.provenance


def test_ranks_that_it_cannot_fill_fail_before_anything_is_measured(jobs: Jobs, run_queue):
    """Of a model whose maps have more directions than are recorded."""
    job = jobs.submit(
        model="minilm",
        budget={"parameters": 400_000},
        allocation={"r_max": 40},
        adapter={"init": "lora-ga"},
    )
    run_queue()

    ended = jobs.get(job).to_job()
    assert ended.error.code == "validation_failed"
    assert "init='lora-ga' fills ranks up to 32" in ended.error.detail
    stages = [e.progress.stage for e in jobs.store.events(job) if e.progress]
    assert stages
    assert not {"fitting_head", "calibrating"} & {stage.value for stage in stages}


def test_a_plan_without_weights_says_nothing_of_them(jobs: Jobs, run_queue):
    """As it did before there were others."""
    job = jobs.submit()
    run_queue()

    text = (folder_of(jobs, job) / "rank_map.json").read_text()
    assert "initial" not in json.loads(text)["provenance"]


@pytest.mark.parametrize(
    ("method", "init"),
    [("kappa", "gora"), ("cka-layers", "lora-one"), ("uniform", "lora-ga"), ("gora", "eva")],
)
def test_it_goes_with_methods_that_need_less_of_a_run(jobs: Jobs, run_queue, method, init):
    """One that reads weights or activations alone, a control, one that leaves layers out."""
    job = jobs.submit(allocation={"method": method}, adapter={"init": init})
    run_queue()

    ended = jobs.get(job).to_job()
    assert ended.result is not None, ended.error
    assert ended.result.rank_map.provenance["initial"]["name"] == init
    tensors = load_file(folder_of(jobs, job) / "adapter_model.safetensors")
    ranks = {m.name: m.rank for m in ended.result.rank_map.modules if m.rank}
    assert {name: len(tensors[f"{PREFIX}{name}.lora_A.weight"]) for name in ranks} == ranks
    is_zero = [not tensors[f"{PREFIX}{name}.lora_B.weight"].any() for name in ranks]
    assert all(is_zero) if init == "eva" else not any(is_zero)
