"""One alpha, its root, or one scale: what stock PEFT applies is what the plan says."""

import json
import math

import pytest
import torch
import yaml
from peft import PeftModel

from fimlora import allocate, find_targets, write_adapter
from fimlora.adapter.config import build_adapter_config
from fimlora.adapter.exports import SCALES_DIFFER, export
from fimlora.adapter.live import resize_adapter
from fimlora.adapter.proof import prove
from fimlora.adapter.read import load_plan
from fimlora.confidence.warnings import warnings_of
from fimlora.errors import AdapterMismatch, InvalidOption
from fimlora.plan import RankPlan
from fimlora.scores import Scores
from support.adapters import config_of
from support.allocation import llama_like, scores_of
from support.models import make_batch, tiny
from support.peft_models import resolved, train, uniform_peft, updates
from support.plans import plan_of

RANKS = [3, 8, 1, 5]
NAME = "llama_gqa_lm"
DIVISORS = {"alpha": float, "rslora": math.sqrt}


@pytest.fixture(params=sorted(DIVISORS))
def scaling(request):
    return request.param


def model_and_plan(scaling, alpha=16, ranks=RANKS):
    model, targets = tiny(NAME)
    return model, plan_of(
        find_targets(model, targets), ranks, scaling=scaling, lora_alpha=alpha
    )


def round_trip(peft_model, folder):
    """Save with PEFT, load with stock PEFT on a new base model."""
    peft_model.save_pretrained(folder)
    return PeftModel.from_pretrained(tiny(NAME)[0], folder)


def effective(peft_model):
    return {name: scale for name, (_, _, scale) in resolved(peft_model).items()}


def wanted(plan, scaling, alpha=16):
    """Alpha over the rank or its root, by the paper and by rsLoRA."""
    return {name: alpha / DIVISORS[scaling](rank) for name, rank in plan.ranks.items()}


def test_stock_peft_applies_the_scale_of_each_rank(scaling, tmp_path):
    """Written, proved, loaded: scales are those of the formula; the plan reads back equal."""
    model, plan = model_and_plan(scaling)
    write_adapter(
        plan, tmp_path / "a", base_model="m", task_type="CAUSAL_LM", weights=True, model=model
    )

    loaded = PeftModel.from_pretrained(tiny(NAME)[0], tmp_path / "a")

    assert effective(loaded) == pytest.approx(wanted(plan, scaling), rel=1e-12)
    assert {name: plan.scale_of(name) for name in plan.ranks} == wanted(plan, scaling)
    config = config_of(tmp_path / "a")
    assert config["use_rslora"] is (scaling == "rslora")
    assert {config["lora_alpha"], *config["alpha_pattern"].values()} == {16}
    assert type(config["lora_alpha"]) is int
    assert load_plan(tmp_path / "a").scaling == scaling
    assert RankPlan.from_json(plan.to_json()) == plan


def test_a_config_of_another_scaling_is_no_proof(scaling):
    """What PEFT would apply is held against the plan, module by module."""
    model, plan = model_and_plan(scaling)
    config = build_adapter_config(plan, base_model="m", task_type="CAUSAL_LM")
    prove(plan, config, model)

    with pytest.raises(AdapterMismatch, match="gets scale"):
        prove(plan, config | {"use_rslora": scaling == "alpha"}, model)


def test_layout_c_cannot_train_modules_at_scales_of_their_own(scaling):
    """It is refused by name; with equal ranks one scale is all there is, and it is exact."""
    model, plan = model_and_plan(scaling)
    _, even = model_and_plan(scaling, ranks=[5])

    with pytest.raises(InvalidOption, match="layout C has one scale for all modules"):
        build_adapter_config(plan, base_model="m", task_type="CAUSAL_LM", layout="C")
    config = build_adapter_config(even, base_model="m", task_type="CAUSAL_LM", layout="C")
    assert config["use_rslora"] is False
    prove(even, config, model, width=8)


@pytest.mark.parametrize("scale", [0.5, 1.5, 1.1, 0.1])
@pytest.mark.parametrize("layout", ["B", "C"])
def test_a_scale_may_be_a_fraction(scale, layout):
    """Alphas are integers where they are: 1.1 times 10 is 11."""
    model, targets = tiny(NAME)
    plan = plan_of(find_targets(model, targets), [10, 3, 20], scale=scale)
    config = build_adapter_config(plan, base_model="m", task_type="CAUSAL_LM", layout=layout)

    prove(plan, config, model, width=32 if layout == "C" else None)

    tenths = round(scale * 10)
    for name, rank in plan.ranks.items():
        is_whole = tenths * rank % 10 == 0
        assert (type(plan.alpha(name)) is int) == is_whole
        assert plan.alpha(name) == pytest.approx(scale * rank, rel=1e-15)
    assert type(config["lora_alpha"]) is (int if tenths * config["r"] % 10 == 0 else float)


# --- resizing ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("was_rslora", [False, True])
def test_a_live_adapter_gets_the_scales_of_the_plan(scaling, is_trained, was_rslora, tmp_path):
    """Its update stays where it grows; saved and loaded by stock PEFT it is the same."""
    model, targets = tiny(NAME)
    peft_model = uniform_peft(model, targets, r=2, use_rslora=was_rslora)
    if is_trained:
        train(peft_model, make_batch(NAME, [9, 4]), steps=3)
    before = updates(peft_model)
    plan = plan_of(
        find_targets(tiny(NAME)[0], targets), [3, 8, 2, 5], scaling=scaling, lora_alpha=16
    )

    resize_adapter(peft_model, plan)

    assert effective(peft_model) == pytest.approx(wanted(plan, scaling), rel=1e-12)
    after = updates(peft_model)
    assert any(update.any() for update in before.values()) == is_trained
    for name, update in before.items():
        assert torch.allclose(after[name], update, rtol=1e-5, atol=1e-7)
    loaded = round_trip(peft_model, tmp_path)
    assert resolved(loaded) == resolved(peft_model)


def test_layers_outside_of_the_plan_keep_their_scale(tmp_path):
    """Another divisor takes another alpha, also in what is saved."""
    model, targets = tiny(NAME)
    peft_model = uniform_peft(model, targets, r=4, lora_alpha=8)
    modules = find_targets(tiny(NAME)[0], targets)
    left = modules[0].name
    plan = plan_of(
        modules[1:], [3, 8], scaling="rslora", lora_alpha=16, not_targeted={left: "no row"}
    )

    resize_adapter(peft_model, plan)

    assert effective(peft_model)[left] == 2
    assert resolved(round_trip(peft_model, tmp_path)) == resolved(peft_model)


# --- exports -----------------------------------------------------------------------------


def test_tools_are_told_and_layouts_of_one_scale_are_refused(scaling):
    """Each reader of patterns gets them; the others are named."""
    _, plan = model_and_plan(scaling)
    config = build_adapter_config(
        plan, base_model="m", task_type="CAUSAL_LM", target_modules=["q_proj"]
    )

    axolotl = yaml.safe_load(export(plan, config, "axolotl").text)
    assert axolotl.get("peft_use_rslora", False) == (scaling == "rslora")
    assert set(axolotl["lora_alpha_pattern"].values()) == {16}
    for tool in ("axolotl", "trl", "unsloth", "vllm", "llama-factory", "ms-swift"):
        assert SCALES_DIFFER in export(plan, config, tool).text
    assert "vLLM 0.32 or newer" in export(plan, config, "vllm").text
    for tool in ("trl", "unsloth"):
        assert ("use_rslora" in export(plan, config, tool).text) == (scaling == "rslora")
    assert json.loads(export(plan, config, "peft").text)["lora_alpha"] == 16
    with pytest.raises(InvalidOption, match="layout C has one scale"):
        export(plan, config, "layout-c")


# --- planning ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["proportional", "uniform"])
def test_alpha_moves_no_rank_and_is_warned_of(scaling, rule):
    """The message has the scales at both ends."""
    scores = Scores(llama_like(), scores_of(llama_like()))
    rslora = scaling == "rslora"
    plan = allocate(scores, 8, rule=rule, alpha=16, rslora=rslora)

    assert plan.ranks == allocate(scores, 8, rule=rule).ranks
    assert (plan.scaling, plan.lora_alpha) == (scaling, 16)
    [warning] = [w for w in warnings_of(plan) if w.code == "scales_differ"]
    scales = wanted(plan, scaling).values()
    assert f"from {min(scales):.3g} to {max(scales):.3g}" in warning.message
    assert "vLLM before 0.32" in warning.message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rslora": True}, "rslora=True needs alpha"),
        ({"alpha": 0}, "alpha=0"),
        ({"alpha": math.inf}, "alpha=inf"),
        ({"alpha": math.nan}, "alpha=nan"),
    ],
    ids=str,
)
def test_what_is_no_alpha_is_refused(options, said):
    """By what was given."""
    with pytest.raises(InvalidOption, match=said):
        allocate(Scores(llama_like(), scores_of(llama_like())), 8, **options)
