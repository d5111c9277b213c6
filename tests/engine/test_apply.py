"""One call from a live PEFT model and a few batches to the ranks it should have."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from fimlora import Budget, allocate, apply_fim_ranks, measure, score
from fimlora.errors import InfeasibleBudget, InvalidOption, NumericalFailure, UnsupportedModule
from fimlora.left_out import UNREACHED
from support.models import make_batch, tiny
from support.partly_run import PARTLY_RUN, text_batch
from support.peft_models import (
    lora_layers,
    lora_tensors,
    planned,
    resolved,
    train,
    uniform_peft,
)

NAMES = ["bert_classifier", "deberta_v2_classifier", "llama_gqa_lm", "gpt2_lm"]
R = 4


def adapted(name, **options):
    model, targets = tiny(name)
    return uniform_peft(model, targets, r=R, **options)


def batches_of(name, n=3):
    return [make_batch(name, [7, 5, 6], seed=i) for i in range(n)]


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_gets_the_plan_at_the_budget_it_had(name, tmp_path):
    """Ranks add up to what they were, differ between modules, and survive a round trip."""
    peft_model = adapted(name)

    plan = apply_fim_ranks(peft_model, batches_of(name))

    assert plan.spent.ranks == R * len(plan.modules)
    assert (plan.r_min, plan.r_max) == (R // 2, 2 * R)
    assert len(set(plan.ranks.values())) > 1
    assert resolved(peft_model) == planned(plan)
    peft_model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(name)[0], tmp_path)
    assert resolved(loaded) == planned(plan)
    ours, theirs = lora_tensors(peft_model), lora_tensors(loaded)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_it_is_measure_allocate_and_resize(estimator):
    """The plan is the one that the three steps give on the bare base model."""
    batches = batches_of("llama_gqa_lm")
    model, targets = tiny("llama_gqa_lm")
    statistics = measure(
        model, batches, target_modules=targets, estimator=estimator, rank=R, n_batches=2, seed=3
    )
    wanted = allocate(score(statistics, aggregation="max"), R, r_min=1, seed=3)

    plan = apply_fim_ranks(
        adapted("llama_gqa_lm"),
        batches,
        2,
        1,
        estimator=estimator,
        aggregation="max",
        seed=3,
    )

    assert plan.ranks == wanted.ranks
    assert plan.controls == wanted.controls
    assert plan.scores == pytest.approx(wanted.scores, rel=1e-5)
    assert plan.provenance["estimator"] == estimator
    assert plan.provenance["aggregation"] == "max"
    assert plan.provenance["n_batches"] == 2


def test_another_budget_and_bounds():
    """A budget in parameters is not exceeded, and given bounds hold."""
    plan = apply_fim_ranks(
        adapted("llama_gqa_lm"),
        batches_of("llama_gqa_lm"),
        r_min=1,
        r_max=6,
        budget=Budget("parameters", 2500),
    )

    assert plan.spent.parameters <= 2500
    assert set(plan.ranks.values()) <= set(range(1, 7))


def test_applying_again_keeps_the_sum_of_ranks():
    """The budget is the ranks the adapter has, not the largest that its config names."""
    peft_model = adapted("llama_gqa_lm")
    first = apply_fim_ranks(peft_model, batches_of("llama_gqa_lm"))

    again = apply_fim_ranks(peft_model, batches_of("llama_gqa_lm"))

    assert again.spent.ranks == first.spent.ranks
    assert again.ranks == first.ranks


def test_a_sum_of_ranks_that_is_no_multiple_is_kept():
    """Seven modules of 10 ranks in sum have no mean rank that a float can say exactly."""
    peft_model = adapted(
        "llama_gqa_lm", rank_pattern={"v_proj": 7}, alpha_pattern={"v_proj": 14}
    )
    total = sum(r for r, _, _ in resolved(peft_model).values())

    plan = apply_fim_ranks(peft_model, batches_of("llama_gqa_lm"))

    assert total % len(plan.modules)
    assert plan.spent.ranks == total


def test_a_trained_adapter_is_measured_as_it_acts():
    """Resized in the middle of training it keeps most of its update and goes on."""
    peft_model = adapted("llama_gqa_lm")
    batch = make_batch("llama_gqa_lm", [7, 5, 6])
    train(peft_model, batch, steps=20)
    before = peft_model(**batch).loss.item()

    apply_fim_ranks(peft_model, batches_of("llama_gqa_lm"))

    resized = peft_model(**batch).loss.item()
    train(peft_model, batch, steps=20)
    assert peft_model(**batch).loss.item() < min(before, resized)


def test_the_controls_can_be_applied():
    """Uniform changes nothing; random depends on the seed alone."""
    uniform = apply_fim_ranks(
        adapted("llama_gqa_lm"), batches_of("llama_gqa_lm", 1), method="uniform"
    )
    random = apply_fim_ranks(
        adapted("llama_gqa_lm"), batches_of("llama_gqa_lm", 1), method="random"
    )

    assert set(uniform.ranks.values()) == {R}
    assert random.ranks == uniform.controls["random"]


def test_a_fractional_scale_is_carried_into_the_plan():
    """Alpha 1 at rank 4: the plan's scale is a quarter, and so is every layer's."""
    peft_model = adapted("llama_gqa_lm", lora_alpha=1)

    plan = apply_fim_ranks(peft_model, batches_of("llama_gqa_lm", 1))

    assert plan.scale == 0.25
    assert resolved(peft_model) == planned(plan)


def with_second(peft_model):
    """A second adapter on fewer modules, which is not the active one."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    with torch.random.fork_rng():
        torch.manual_seed(2)
        peft_model.add_adapter("second", config)
    return peft_model


def test_only_the_named_adapter_is_measured_and_resized():
    """A trained and active ``default`` beside it moves no rank, no score, and stays."""
    batches = batches_of("llama_gqa_lm")
    peft_model = adapted("llama_gqa_lm")
    train(peft_model, batches[0], steps=30)
    with_second(peft_model)
    flags = {n: p.requires_grad for n, p in peft_model.named_parameters()}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    alone = get_peft_model(tiny("llama_gqa_lm")[0], config, adapter_name="second")
    wanted = apply_fim_ranks(alone, batches, adapter_name="second")

    plan = apply_fim_ranks(peft_model, batches, adapter_name="second")

    assert {m.kind for m in plan.modules} == {"self_attn.q_proj", "self_attn.v_proj"}
    assert plan.scores == wanted.scores
    assert plan.ranks == wanted.ranks
    assert {r for r, _, _ in resolved(peft_model).values()} == {R}
    assert peft_model.active_adapters == ["default"]
    assert {n: p.requires_grad for n, p in peft_model.named_parameters()} == flags


def test_a_disabled_adapter_acts_while_it_is_measured():
    """And it is disabled again afterwards."""
    batches = batches_of("llama_gqa_lm")
    plans, models = [], [adapted("llama_gqa_lm") for _ in range(2)]
    for peft_model in models:
        train(peft_model, batches[0], steps=30)
    plans.append(apply_fim_ranks(models[0], batches))

    with models[1].disable_adapter():
        plans.append(apply_fim_ranks(models[1], batches))

        assert all(layer.disable_adapters for layer in lora_layers(models[1]).values())

    assert plans[0].scores == plans[1].scores


def test_beside_a_merged_adapter_nothing_is_measured():
    """It is part of the base weights, so the scores would be those of another model."""
    peft_model = with_second(adapted("llama_gqa_lm"))
    peft_model.merge_adapter(["default"])

    with pytest.raises(InvalidOption, match="'default' is merged"):
        apply_fim_ranks(peft_model, batches_of("llama_gqa_lm", 1), adapter_name="second")


def failing_batches():
    yield make_batch("llama_gqa_lm", [5, 4])
    raise ConnectionError("the disk is gone")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dataloader": failing_batches()}, ConnectionError),
        ({"r_min": 9, "r_max": 9}, InfeasibleBudget),
        ({"adapter_name": "other"}, InvalidOption),
        ({"method": "spectral", "r_min": 0}, InvalidOption),
        (
            {"loss_fn": lambda outputs, batch: outputs.logits[:, 0, 0] * float("nan")},
            NumericalFailure,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_after_an_error_the_model_is_as_it_was(options, error):
    """Nothing is resized, frozen, left hooked or switched to another adapter."""
    peft_model = with_second(adapted("llama_gqa_lm"))
    peft_model.set_adapter("second")
    before = {n: (p, p.requires_grad, p.grad) for n, p in peft_model.named_parameters()}
    config = peft_model.peft_config["default"].to_dict()
    arguments = {"dataloader": batches_of("llama_gqa_lm")} | options

    with pytest.raises(error):
        apply_fim_ranks(peft_model, **arguments)

    assert {n: (p, p.requires_grad, p.grad) for n, p in peft_model.named_parameters()} == before
    assert peft_model.peft_config["default"].to_dict() == config
    assert not any(m._forward_hooks for m in peft_model.modules())
    assert all(m.active_adapters == ["second"] for m in lora_layers(peft_model).values())


def test_modules_of_unequal_scale_are_refused():
    """One plan has one scale: scores of modules that differ in it do not compare."""
    peft_model = adapted("llama_gqa_lm", rank_pattern={"v_proj": 7})

    with pytest.raises(UnsupportedModule, match="one alpha / rank"):
        apply_fim_ranks(peft_model, batches_of("llama_gqa_lm", 1))


def test_a_layer_that_no_row_reaches_keeps_its_rank():
    """The others share what they had; the plan lists it."""
    peft_model = get_peft_model(
        PARTLY_RUN["llava"].build(),
        LoraConfig(r=R, lora_alpha=2 * R, target_modules=["q_proj", "v_proj"]),
    )
    before = resolved(peft_model)

    plan = apply_fim_ranks(peft_model, [text_batch([21, 9, 7, 3])])

    tower = {name for name in before if "vision_tower" in name}
    assert plan.not_targeted == dict.fromkeys(sorted(tower), UNREACHED)
    assert plan.spent.ranks == R * len(before.keys() - tower)
    after = resolved(peft_model)
    assert {name: after[name] for name in tower} == {name: before[name] for name in tower}
    assert {name: after[name] for name in after if name not in tower} == planned(plan)
    assert len(set(plan.ranks.values())) > 1
