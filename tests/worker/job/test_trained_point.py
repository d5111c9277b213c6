"""Calibration at a trained adapter: what a live PEFT model gives, from a queued job."""

import shutil

import peft
import pytest
import torch
import transformers

from fimlora import Statistics, load_plan
from fimlora_jobs.datasets.folders import FolderDigests
from fimlora_jobs.trained_adapters import adapter_files
from support.jobs import Jobs
from support.peft_models import lora_layers

# Uneven, so that padding is cut; as many as are measured, so that all of them are.
LENGTHS = (60, 9, 7, 3, 22, 5, 31, 12, 3, 4, 17, 8)
ROWS = [
    {"text": " ".join(f"w{(7 * n + 3 * i) % 50}" for i in range(length)), "label": n % 3}
    for n, length in enumerate(LENGTHS)
]
CALIBRATION = {"n_batches": 3, "batch_size": 4, "max_length": 40, "adapter": "mine"}
TARGETS = ["query", "value", "intermediate.dense"]


def save_adapter(jobs: Jobs, *, n_labels: int = 3, **options):
    """What training would leave: LoRA of uneven ranks on the tiny encoder, and its head."""
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        jobs.data_dir / "models" / "tiny", num_labels=n_labels
    )
    options = {
        "r": 4, "lora_alpha": 6, "rank_pattern": {"value": 2}, "alpha_pattern": {"value": 3},
        "target_modules": TARGETS, "task_type": "SEQ_CLS",
    } | options  # fmt: skip
    adapted = peft.get_peft_model(base, peft.LoraConfig(**options)).eval()
    draws = torch.Generator().manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=draws) * 0.3
    adapted.save_pretrained(jobs.data_dir / "adapters" / "mine")
    return adapted


def submit(jobs: Jobs, **calibration) -> str:
    """As the service accepts it."""
    files = adapter_files(jobs.data_dir / "adapters" / "mine")
    dataset = {"source": "inline", "rows": ROWS}
    resolved = {
        "base_model": jobs._model("tiny"),
        "dataset": {"source": "inline", "digest": "sha256:0", "fields": None, "rows": None},
        "adapter": {"name": "mine", "digest": FolderDigests().of_files(files)},
    }
    return jobs.submit_resolved(
        resolved=resolved,
        base_model={"source": "local", "name": "tiny"},
        dataset=dataset,
        calibration=CALIBRATION | calibration,
        budget=3,
    )


def outcome(jobs: Jobs, job_id: str):
    """The plan and the statistics of a job that succeeded."""
    job = jobs.get(job_id).to_job()
    assert job.result is not None, job.error
    folder = jobs.data_dir / "artifacts" / job.result.digest.replace(":", "-")
    return load_plan(folder), Statistics.load(folder / "statistics.safetensors")


def by_autograd(jobs: Jobs, adapted) -> dict[str, float]:
    """Mean squared gradient of a parameter of A and B, row by row."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(jobs.data_dir / "models" / "tiny")
    matrices = {
        name: [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        for name, layer in lora_layers(adapted).items()
    }
    sums = dict.fromkeys(matrices, 0.0)
    for row in ROWS:
        inputs = tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=40)
        loss = adapted(**inputs, labels=torch.tensor([row["label"]])).loss
        for name, pair in matrices.items():
            grads = torch.autograd.grad(loss, pair, retain_graph=True)
            sums[name] += sum(float(grad.double().square().sum()) for grad in grads)
    return {
        name: total / len(ROWS) / sum(weight.numel() for weight in matrices[name])
        for name, total in sums.items()
    }


def test_scores_are_those_of_autograd_at_the_adapter(jobs: Jobs, run_queue):
    """A and B of the very adapter, under its own head; the plan says where it was measured."""
    adapted = save_adapter(jobs)
    job_id = submit(jobs)
    run_queue()

    plan, statistics = outcome(jobs, job_id)

    wanted = by_autograd(jobs, adapted)
    assert plan.scores.keys() == wanted.keys()
    for name, score in plan.scores.items():
        assert score == pytest.approx(wanted[name], rel=1e-5)
    assert sum(plan.ranks.values()) == 3 * len(wanted)
    assert plan.provenance["estimator"] == "adapter"
    assert plan.provenance["adapter"]["name"] == "mine"
    assert statistics.head is not None
    assert statistics.head["kind"] == "adapter"


def test_the_layout_of_the_adapter_changes_nothing(jobs: Jobs, run_queue):
    """Padded to one rank and back: the padding has no gradient and is no rank."""
    from fimlora import convert_adapter

    save_adapter(jobs)
    first = submit(jobs)
    run_queue()
    folder = jobs.data_dir / "adapters" / "mine"
    convert_adapter(folder, jobs.data_dir / "padded", layout="C")
    shutil.rmtree(folder)
    shutil.move(jobs.data_dir / "padded", folder)
    second = submit(jobs, batch_size=6, n_batches=2)
    run_queue()

    (one, _), (two, _) = outcome(jobs, first), outcome(jobs, second)
    assert two.ranks == one.ranks
    for name, score in one.scores.items():
        assert two.scores[name] == pytest.approx(score, rel=1e-5)


def test_the_model_is_none_for_the_next_job(jobs: Jobs, run_queue):
    """A job at the base model, before and after one at the adapter, finds the same."""
    save_adapter(jobs)
    ids = []
    for at_adapter in (False, True, False):
        calibration = {k: v for k, v in CALIBRATION.items() if k != "adapter"}
        dataset = {"source": "inline", "rows": ROWS}
        ids.append(
            submit(jobs)
            if at_adapter
            else jobs.submit(dataset=dataset, calibration=calibration, budget=3)
        )
        run_queue()

    plans = [outcome(jobs, job_id)[0] for job_id in ids]
    assert plans[0].scores == plans[2].scores
    assert plans[0].scores.keys() != plans[1].scores.keys()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"n_labels": 2}, "validation_failed", "labels need"),
        ({"task_type": None}, "validation_failed", "the checkpoint lacks"),
    ],
)
def test_an_adapter_that_does_not_fit_ends_the_job_by_name(
    jobs: Jobs, run_queue, options, code, said
):
    """Another number of labels; no head where the base model has none either."""
    save_adapter(jobs, **options)
    job_id = submit(jobs)
    run_queue()

    error = jobs.get(job_id).to_job().error
    assert error is not None
    assert (error.code, said in error.detail) == (code, True), error


def test_an_adapter_that_has_changed_is_not_measured(jobs: Jobs, run_queue):
    """What a job was accepted with is what it measures, or it fails."""
    save_adapter(jobs)
    job_id = submit(jobs)
    config = jobs.data_dir / "adapters" / "mine" / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    run_queue()

    error = jobs.get(job_id).to_job().error
    assert error is not None
    assert (error.code, "has changed" in error.detail) == ("adapter_not_found", True)
