"""Jobs that have modules trained whole beside LoRA: stock PEFT trains just what the plan says."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fimlora import RankPlan, verify_adapter
from fimlora.adapter.rank_map import budget_line
from support.jobs import DISTINCT, Jobs
from support.model_folders import make_decoder

TEXTS = {"source": "inline", "rows": [{"text": row["text"]} for row in DISTINCT[:12]]}
BOTH = ["embed_tokens", "lm_head"]


def submit(jobs: Jobs, *, executor: str = "resident", **request) -> str:
    return jobs.submit(
        **{
            "model": "decoder",
            "dataset": TEXTS,
            "calibration": {"batch_size": 4, "n_batches": 2, "executor": executor},
            "target_modules": ["q_proj", "v_proj"],
            "budget": 4,
            **request,
        }
    )


def result_of(jobs: Jobs, job_id: str):
    job = jobs.get(job_id).to_job()
    assert job.error is None, job.error
    return job.result


def folder_of(jobs: Jobs, result) -> Path:
    return jobs.data_dir / "artifacts" / result.digest.replace(":", "-")


def plan_of(result) -> RankPlan:
    return RankPlan.from_json(result.rank_map.model_dump(mode="json"))


def trained_by(model) -> dict[str, int]:
    """Parameters by the name of the module that trains whole; those of LoRA under one name."""
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            start, _, _ = name.removeprefix("base_model.model.").partition(".modules_to_save.")
            key = "LoRA" if ".lora_" in name else start
            found[key] = found.get(key, 0) + parameter.numel()
    return found


def decoder(jobs: Jobs, name: str = "decoder"):
    return AutoModelForCausalLM.from_pretrained(jobs.data_dir / "models" / name)


@pytest.fixture
def tied(jobs: Jobs) -> str:
    """A decoder whose head is its embedding."""
    make_decoder(jobs.data_dir / "models/tied", tie_word_embeddings=True)
    return "tied"


@pytest.mark.parametrize("saved", [["lm_head"], BOTH, ["model.norm"], ["layers.1.mlp"]])
def test_stock_peft_trains_what_the_plan_says(jobs: Jobs, run_queue, saved):
    """Of the config alone, and of the folder with weights; streamed and resident alike."""
    ids = [
        submit(jobs, executor=executor, modules_to_save=saved, adapter={"weights": True})
        for executor in ("resident", "streamed")
    ]
    run_queue()

    result, streamed = (result_of(jobs, job_id) for job_id in ids)
    assert result.digest == streamed.digest
    plan, folder = plan_of(result), folder_of(jobs, result)
    assert len(plan.saved) == len(saved)
    assert_trains(jobs, plan, folder)


def assert_trains(jobs: Jobs, plan: RankPlan, folder: Path, model: str = "decoder") -> None:
    """Stock PEFT trains what the plan says, and begins as the base model."""
    wanted = {"LoRA": plan.spent.parameters, **plan.saved}
    fresh = get_peft_model(decoder(jobs, model), LoraConfig.from_pretrained(folder))
    assert trained_by(fresh) == wanted
    ids_in = torch.arange(10)[None]
    with torch.no_grad():
        before = decoder(jobs, model)(ids_in).logits
        loaded = PeftModel.from_pretrained(decoder(jobs, model), folder, is_trainable=True)
        torch.testing.assert_close(loaded(ids_in).logits, before)
    assert trained_by(loaded) == wanted
    assert verify_adapter(folder, plan).as_planned


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], BOTH])
def test_a_tied_weight_is_saved_as_copies_and_the_plan_says_so(
    jobs: Jobs, run_queue, tied, saved
):
    """As stock PEFT does it; what is trained, merged and saved is one and the same model."""
    job_id = submit(jobs, model=tied, modules_to_save=saved, adapter={"weights": True})
    run_queue()

    result = result_of(jobs, job_id)
    plan, folder = plan_of(result), folder_of(jobs, result)
    assert_trains(jobs, plan, folder, tied)
    assert plan.provenance["untied_by_saving"].keys() == plan.saved.keys()
    assert "which unties" in budget_line(plan)
    model = PeftModel.from_pretrained(decoder(jobs, tied), folder, is_trainable=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        ids_in = torch.arange(10)[None]
        trained = model(ids_in).logits
        model.merge_and_unload().save_pretrained(folder.parent / "merged")
        merged = AutoModelForCausalLM.from_pretrained(folder.parent / "merged")
        torch.testing.assert_close(merged(ids_in).logits, trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("saved", [None, ["classifier"], ["pooler"], ["pooler", "classifier"]])
def test_the_head_of_a_classification_is_saved_once(jobs: Jobs, run_queue, saved):
    """Named or not, and whatever else is saved with it."""
    job_id = jobs.submit(
        model="tiny", budget=4, target_modules=["query"], modules_to_save=saved,
        calibration={"batch_size": 4, "n_batches": 2}, adapter={"weights": True},
    )  # fmt: skip
    run_queue()

    result = result_of(jobs, job_id)
    plan, folder = plan_of(result), folder_of(jobs, result)
    config = json.loads((folder / "adapter_config.json").read_text())
    named = [name.rpartition(".")[2] for name in config["modules_to_save"]]
    assert sorted(named) == sorted({"classifier", *(saved or ())})
    base = AutoModelForSequenceClassification.from_pretrained(
        jobs.data_dir / "models/tiny", num_labels=3
    )
    loaded = PeftModel.from_pretrained(base, folder, is_trainable=True)
    head = sum(
        p.numel() for p in loaded.base_model.model.classifier.modules_to_save.parameters()
    )
    wanted = {"LoRA": plan.spent.parameters, "classifier": head, **plan.saved}
    assert trained_by(loaded) == wanted
    assert [n.rpartition(".")[2] for n in plan.saved] == sorted(saved or [], reverse=True)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"modules_to_save": ["lm_haed"]}, ["'lm_haed' is no name", "Near names: lm_head"]),
        ({"modules_to_save": ["layers"]}, ["'model.layers', a ModuleList", "inside it"]),
        ({"modules_to_save": ["act_fn"]}, ["no parameters to train"]),
        ({"modules_to_save": ["q_proj"]}, ["target_modules entry 'q_proj'", "one of both"]),
        ({"modules_to_save": ["self_attn"]}, ["target_modules entry 'q_proj'", "one of both"]),
        (
            {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "lm_head"]},
            ["'lm_head' can be no target module", "trained whole"],
        ),
        (
            {"modules_to_save": ["model"], "target_modules": "all-linear"},
            ["none of the 14 modules", "trained whole"],
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(jobs: Jobs, run_queue, request_, words):
    """Before anything is measured, with the next step."""
    job_id = submit(jobs, **request_)
    run_queue()

    error = jobs.get(job_id).to_job().error
    assert error is not None
    assert all(word in error.detail for word in words), error.detail
