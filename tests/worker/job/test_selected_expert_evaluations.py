"""Evaluations of selected experts, from the queue to what they found."""

import json

import pytest
import torch
import transformers

from fimlora import RankPlan
from support.families import build
from support.jobs import Jobs
from support.model_folders import make_family

pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match")
TEXT = [{"text": f"w{n} w{n * 7 % 50} w{n * 3 % 50} " * (1 + n % 5)} for n in range(48)]
PAIRS = [
    {"prompt": f"w{n} w{n * 7 % 50}", "completion": f"w{n * 3 % 50} w{n % 7}"}
    for n in range(48)
]
ARMS = ("fim", "uniform", "random", "random-experts")


@pytest.fixture
def folder_of(jobs: Jobs):
    """Registers a model; the other tests' folders are not touched."""
    shared = jobs.data_dir / "models"
    if shared.is_symlink():
        shared.unlink()
        shared.mkdir()

    def make(name: str, model: transformers.PreTrainedModel):
        return make_family(shared / name, model)

    return make


def switch():
    """Switch Transformers with four experts in two layers, modules of their own."""
    torch.manual_seed(0)
    config = transformers.SwitchTransformersConfig(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2,
        num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
        expert_capacity=64, decoder_start_token_id=0, dropout_rate=0.0, pad_token_id=0,
    )  # fmt: skip
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "router" in name:  # as drawn, it gives nearly all tokens to one expert
            parameter.data.copy_(torch.randn(parameter.shape))
    return model


CASES = {
    "fused": (
        lambda: build("qwen3_moe_mlp_only"), TEXT,
        {"target_modules": ["q_proj"], "target_parameters": "all"},
        {"select": "routed", "share": 0.5},
    ),
    "covered": (
        lambda: build("qwen3_moe_mlp_only"), TEXT,
        {"target_modules": ["q_proj"], "target_parameters": "all"},
        {"select": "fisher", "coverage": 0.6},
    ),
    "own": (
        switch, PAIRS, {"target_modules": ["wi", "wo", "q"]}, {"select": "fisher", "share": 0.5},
    ),
}  # fmt: skip


def experts_of(plan):
    """The experts that train, by layer."""
    found = {}
    for module in plan.modules:
        if module.n_experts is not None:
            place = module.name.rpartition(".")[0]
            found[place] = {*map(str, module.experts or range(module.n_experts))}
        elif ".experts." in module.name:
            place, _, rest = module.name.partition(".experts.")
            found.setdefault(place, set()).add(rest.partition(".")[0])
    return found


@pytest.mark.parametrize("case", CASES)
def test_selected_experts_are_trained_beside_all_and_random_ones(
    jobs: Jobs, run_queue, folder_of, case
):
    """As many random ones in each layer, several draws of them; all arms spend the same."""
    make, rows, targets, experts = CASES[case]
    folder_of("mixture", make())
    job_id = jobs.submit_evaluation(
        base_model={"source": "local", "name": "mixture"},
        dataset={"source": "inline", "rows": rows},
        budget={"parameters": 6000}, allocation={"experts": experts, "r_min": 1}, **targets,
    )  # fmt: skip
    run_queue()

    job = jobs.get(job_id).to_job()
    assert job.error is None, job.error
    assert tuple(arm.name for arm in job.result.arms) == ARMS
    folder = jobs.data_dir / "artifacts" / job.result.digest.replace(":", "-")
    found = json.loads((folder / "evaluation.json").read_text())
    plans = {
        name: [RankPlan.from_json(each) for each in maps]
        for name, maps in found["plans"].items()
    }
    assert {name: len(each) for name, each in plans.items()} == dict(
        zip(ARMS, (1, 1, 5, 5), strict=True)
    )
    chosen = experts_of(plans["fim"][0])
    every = experts_of(plans["uniform"][0])
    assert all(0 < len(chosen[place]) < len(every[place]) for place in every)
    assert all(experts_of(plan) == chosen for plan in plans["random"])
    draws = [experts_of(plan) for plan in plans["random-experts"]]
    assert all(
        {p: len(e) for p, e in d.items()} == {p: len(e) for p, e in chosen.items()}
        for d in draws
    )
    assert len({str(sorted((p, sorted(e)) for p, e in d.items())) for d in draws}) > 1
    spent = [plan.spent.parameters for each in plans.values() for plan in each]
    assert max(spent) <= 6000
    for arm in job.result.arms:
        assert set(arm.adapter_parameters) <= {p.spent.parameters for p in plans[arm.name]}
        assert arm.trainable_parameters == max(arm.adapter_parameters)
    references = {d.reference for d in job.result.differences if d.arm == "fim"}
    assert references == {"uniform", "random", "random-experts"}
    assert any("uniform trains all of them" in note for note in job.result.verdict.notes)


@pytest.mark.parametrize(
    ("experts", "is_known_before"),
    [
        ({"select": "routed", "share": 0.25}, True),
        ({"select": "routed", "coverage": 0.01}, False),  # it may have come to all of them
    ],
    ids=str,
)
def test_what_all_experts_cannot_spend_is_refused(
    jobs: Jobs, run_queue, folder_of, experts, is_known_before
):
    """A mean rank of 1 for one expert of four is a quarter of a rank for all."""
    folder_of("mixture", build("qwen3_moe_mlp_only"))
    job_id = jobs.submit_evaluation(
        base_model={"source": "local", "name": "mixture"},
        dataset={"source": "inline", "rows": TEXT}, budget=1,
        target_modules=["q_proj"], target_parameters="all", allocation={"experts": experts},
    )  # fmt: skip
    run_queue()

    job = jobs.get(job_id).to_job()
    assert job.error.code == "budget_infeasible"
    assert "uniform ranks of all experts" in job.error.detail
    assert "give a larger budget" in job.error.detail
    stages = [e.progress.stage for e in jobs.store.events(job_id, limit=500) if e.progress]
    assert ("calibrating" in stages) is not is_known_before
