"""Experts that are modules of their own: those that are not selected get no LoRA at all."""

import copy

import peft
import pytest
import torch
import transformers

from fimlora import allocate, measure, score, select_experts, verify_adapter, write_adapter
from fimlora.errors import InvalidOption
from fimlora.left_out import NOT_SELECTED


@pytest.fixture(scope="module")
def measured():
    """Switch Transformers with four experts in two layers, and what was measured of it."""
    torch.manual_seed(0)
    config = transformers.SwitchTransformersConfig(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2,
        num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
        expert_capacity=64, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    model = transformers.SwitchTransformersForConditionalGeneration(config).eval()
    ids = torch.randint(2, 60, (4, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    return model, measure(model, [batch], target_modules=["wi", "wo", "q"], estimator="exact")


@pytest.mark.parametrize("select", ["fisher", "random"])
def test_experts_that_are_not_selected_are_no_targets(measured, select, tmp_path):
    """Stock PEFT holds what trains and no more."""
    model, statistics = measured

    some = select_experts(statistics, select, share=0.5)

    left = {name for name, why in some.not_targeted.items() if why == NOT_SELECTED}
    kept = {m.name for m in some.modules if ".experts." in m.name}
    assert len(left) == len(kept) == 8
    assert {n.rpartition(".")[0] for n in kept}.isdisjoint(n.rpartition(".")[0] for n in left)
    plan = allocate(score(some), 4, r_min=1)
    write_adapter(
        plan,
        tmp_path / "a",
        base_model=None,
        task_type="SEQ_2_SEQ_LM",
        model=model,
        weights=True,
    )
    made = peft.PeftModel.from_pretrained(
        copy.deepcopy(model), tmp_path / "a", is_trainable=True
    )
    held = sum(p.numel() for n, p in made.named_parameters() if ".lora_" in n)
    assert held == plan.spent.parameters
    assert not [w for w in plan.warnings if w.code == "experts_selected"]
    assert not verify_adapter(tmp_path / "a", plan).faults


def test_by_fisher_those_with_more_are_taken(measured):
    """In each layer, over all projections of an expert."""
    _, statistics = measured
    kept = {m.name for m in select_experts(statistics, "fisher", share=0.5).modules}
    scores = score(statistics).by_module
    sums = {}
    for module in statistics.modules:
        if ".experts." in module.name:
            place, _, expert = module.name.rpartition(".")[0].rpartition(".")
            of = sums.setdefault(place, {})
            of[expert] = of.get(expert, 0) + scores[module.name] * module.d_out
    for place, of in sums.items():
        best = sorted(of, key=of.__getitem__)[-2:]
        assert {e for e in of if f"{place}.{e}.wi" in kept} == set(best)


def test_tokens_of_these_are_not_counted(measured):
    """And nothing else stands for them."""
    with pytest.raises(InvalidOption, match="select by 'fisher', or take 'random'"):
        select_experts(measured[1], "routed", share=0.5)


@pytest.mark.parametrize(
    ("select", "options", "advice"),
    [
        (
            "fisher",
            {"share": 0.5},
            "no Fisher information was measured: select at random with a",
        ),
        ("fisher", {"coverage": 0.5}, "no Fisher information was measured"),
        (
            "routed",
            {"share": 0.5},
            "take 'random' with a share, or calibrate with method 'fim'",
        ),
        ("random", {"coverage": 0.5}, "take 'random' with a share, or calibrate"),
    ],
)
def test_what_was_not_estimated_selects_nothing(measured, select, options, advice):
    """A run without an estimator is refused by what it lacks; a share at random needs nothing."""
    model, _ = measured
    linear = measure(
        model, [], target_modules=["wi", "q"], estimator="none", record="weight_condition"
    )

    with pytest.raises(InvalidOption, match=advice):
        select_experts(linear, select, **options)
    assert len(select_experts(linear, "random", share=0.5).modules) < len(linear.modules)
