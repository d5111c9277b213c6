"""Jobs that name an embedding and a head among their targets."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fimlora import RankPlan, verify_adapter
from support.jobs import DISTINCT, Jobs

TARGETS = ["embed_tokens", "lm_head", "q_proj"]
TEXTS = {"source": "inline", "rows": [{"text": row["text"]} for row in DISTINCT[:12]]}


def submit(jobs: Jobs, *, executor: str = "resident", **request) -> str:
    return jobs.submit(
        model="decoder",
        dataset=TEXTS,
        calibration={"batch_size": 4, "n_batches": 3, "executor": executor},
        **{"target_modules": TARGETS, "budget": 4, **request},
    )


def result_of(jobs: Jobs, job_id: str):
    job = jobs.get(job_id).to_job()
    assert job.error is None, job.error
    return job.result


def folder_of(jobs: Jobs, digest: str) -> Path:
    return jobs.data_dir / "artifacts" / digest.replace(":", "-")


def test_they_are_measured_planned_and_written_whatever_the_executor(jobs: Jobs, run_queue):
    """PEFT loads the adapter as planned, and it changes nothing before it is trained."""
    ids = [
        submit(jobs, executor=executor, adapter={"weights": True})
        for executor in ("resident", "streamed")
    ]
    run_queue()

    first, second = (result_of(jobs, job_id) for job_id in ids)
    assert first.digest == second.digest
    tables = {m.name: m for m in first.rank_map.modules}
    assert list(tables) == [
        "model.embed_tokens",
        *(f"model.layers.{i}.self_attn.q_proj" for i in range(2)),
        "lm_head",
    ]
    assert [name for name, m in tables.items() if m.is_embedding] == ["model.embed_tokens"]
    folder = folder_of(jobs, first.digest)
    plan = RankPlan.from_json(first.rank_map.model_dump(mode="json"))
    assert verify_adapter(folder, plan).as_planned
    fresh = AutoModelForCausalLM.from_pretrained(jobs.data_dir / "models/decoder")
    ids_in = torch.arange(10)[None]
    with torch.no_grad():
        wanted = fresh(ids_in).logits
        loaded = PeftModel.from_pretrained(fresh, folder)
        torch.testing.assert_close(loaded(ids_in).logits, wanted)
    assert plan.spent.parameters == sum(
        p.numel() for n, p in loaded.named_parameters() if "lora_" in n
    )


def test_another_budget_needs_no_second_measurement(jobs: Jobs, run_queue):
    """What was measured of an embedding is read back with all else."""
    first = submit(jobs)
    again = submit(jobs, statistics_from=first, budget=6, adapter={"weights": True})
    fresh = submit(jobs, budget=6, adapter={"weights": True})
    run_queue()

    assert result_of(jobs, again).digest == result_of(jobs, fresh).digest


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"allocation": {"method": "gora"}}, ["is of linear maps", "embed_tokens", "'fim'"]),
        ({"adapter": {"init": "zeros"}}, ["embed_tokens", "take init='kaiming'"]),
    ],
    ids=["method", "init"],
)
def test_what_is_of_linear_maps_is_refused_by_name(jobs: Jobs, run_queue, request_, words):
    """Before anything is measured, with the next step."""
    job_id = submit(jobs, **request_)
    run_queue()

    error = jobs.get(job_id).to_job().error
    assert error is not None
    assert all(word in error.detail for word in words), error.detail
