"""Experts that are modules of their own: those that are not selected get no LoRA at all."""

import copy

import peft
import pytest
import torch
import transformers

from fimlora import (
    Budget,
    Statistics,
    allocate,
    measure,
    score,
    select_experts,
    verify_adapter,
    write_adapter,
)
from fimlora.confidence.evidence import with_confidence
from fimlora.confidence.signal import source_if_any, with_signal
from fimlora.errors import InvalidOption, UnsupportedModule
from fimlora.left_out import NOT_SELECTED
from fimlora.methods.expert_choice import ExpertChoice, check_selectable, least_and_most
from fimlora.methods.registry import records_needed


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


METHODS = (
    "fim", "coherent", "spectral", "spectral-denoised", "fim-over-null", "kappa", "fisher-layers",
    "fisher-layers-frobenius", "uniform", "random",
)  # fmt: skip


@pytest.fixture(scope="module")
def recorded(measured):
    """The same model, with what all methods look at; and how to measure some modules alone."""
    model, _ = measured
    torch.manual_seed(1)
    ids = torch.randint(2, 60, (6, 9))
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    batches = [rows, {name: values[:4].flip(1) for name, values in rows.items()}]

    def of(targets):
        return measure(
            model, batches, target_modules=targets, estimator="exact", null=True, halves=True,
            record=records_needed(*METHODS),
        )  # fmt: skip

    return of(["wi", "wo", "q"]), of


@pytest.mark.parametrize(
    "asked",
    [{"select": "fisher", "share": 0.5}, {"select": "random", "share": 0.25, "seed": 2}],
    ids=str,
)
def test_a_plan_is_that_of_who_targets_the_selected_experts_alone(recorded, asked, tmp_path):
    """By every method, signal and confidence included, as if the others had never been targets."""
    every, of = recorded
    some = select_experts(every, **asked)
    alone = of([module.name for module in some.modules])
    assert alone.modules == some.modules
    some.save(tmp_path / "s")

    with Statistics.opened(tmp_path / "s") as read:
        for method in METHODS:
            plans = [
                with_confidence(
                    taken,
                    with_signal(
                        allocate(score(taken, method), Budget("parameters", 4000), r_min=1),
                        source_if_any(taken, method, scale=2, aggregation="mean"),
                    ),
                )
                for taken in (some, alone, read)
            ]
            first, *others = [
                (p.ranks, p.scores, p.controls, p.signal, p.confidence) for p in plans
            ]
            assert all(other == first for other in others), method


def test_what_is_asked_before_measuring_is_what_is_selected_then(measured):
    """As many modules, and the names of the others; what tokens would tell is refused."""
    modules = measured[1].modules
    choice = ExpertChoice("fisher", share=0.5)
    [(told, left_out)] = least_and_most(modules, choice)
    some = select_experts(measured[1], "fisher", share=0.5)
    assert (len(told), len(left_out)) == (len(some.modules), len(some.not_targeted))
    assert {m.name for m in told} | left_out.keys() == {m.name for m in modules}
    check_selectable(modules, choice)
    for by_tokens in (ExpertChoice("routed", share=0.5), ExpertChoice("random", coverage=0.5)):
        with pytest.raises(InvalidOption, match="tokens are counted of fused experts"):
            check_selectable(modules, by_tokens)


def nllb():
    """NLLB-MoE with four experts in two layers."""
    torch.manual_seed(0)
    config = transformers.NllbMoeConfig(
        vocab_size=64, d_model=16, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_experts=4,
        encoder_sparse_step=2, decoder_sparse_step=2, expert_capacity=64,
        max_position_embeddings=64, decoder_start_token_id=2,
    )  # fmt: skip
    return transformers.NllbMoeForConditionalGeneration(config).eval()


def test_other_encoder_decoders_are_selected_from_where_they_are_measured():
    """By name they are refused without a loss; with one, their experts are found by theirs."""
    model = nllb()
    ids = torch.randint(3, 60, (4, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    with pytest.raises(UnsupportedModule, match=r"NllbMoe.* give a loss_fn"):
        measure(model, [batch], target_modules=["fc1", "fc2"])

    def loss_fn(outputs, batch):
        logits, labels = outputs.logits.flatten(0, 1), batch["labels"]
        each = torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="none")
        return each.view(labels.shape).mean(dim=1)

    statistics = measure(
        model, [batch], target_modules=["fc1", "fc2"], loss_fn=loss_fn, estimator="exact"
    )
    some = select_experts(statistics, "fisher", share=0.5)
    by_place = {}
    for module in (m for m in some.modules if ".experts." in m.name):
        place, _, expert = module.name.rpartition(".")[0].rpartition(".")
        by_place.setdefault(place, set()).add(expert)
    assert [*by_place] == [f"model.{s}.layers.1.ffn.experts" for s in ("encoder", "decoder")]
    assert {len(experts) for experts in by_place.values()} == {2}
