"""A live adapter resized in place is the one that stock PEFT saves and loads."""

import math
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from fimlora import find_targets
from fimlora.adapter.live import live_adapter, resize_adapter
from fimlora.errors import InvalidOption, UnsupportedModule
from support.models import make_batch, tiny
from support.peft_models import (
    lora_layers,
    lora_parameters,
    lora_tensors,
    planned,
    resolved,
    train,
    uniform_peft,
    updates,
)
from support.plans import plan_of

NAMES = ["bert_classifier", "llama_gqa_lm", "gpt2_lm"]
RANKS = [3, 8, 1, 5]
# The uniform rank of the adapters that are resized: between the planned ones.
R = 4


def adapted(name, **options):
    """A fresh uniform adapter on a tiny model, and a plan for its modules."""
    model, targets = tiny(name)
    plan = plan_of(find_targets(model, targets), RANKS)
    return uniform_peft(model, targets, r=R, **options), plan


def round_trip(peft_model, name, folder):
    """Save with PEFT, load with stock PEFT on a new base model."""
    peft_model.save_pretrained(folder)
    return PeftModel.from_pretrained(tiny(name)[0], folder)


def state_of(peft_model):
    """Everything of a model that a refused call must not change."""
    config = peft_model.peft_config["default"]
    tensors = {
        n: (p, p.detach().clone(), p.requires_grad) for n, p in peft_model.named_parameters()
    }
    return tensors, config.to_dict(), resolved(peft_model)


def assert_unchanged(peft_model, state):
    tensors, config, settings = state
    assert peft_model.peft_config["default"].to_dict() == config
    assert resolved(peft_model) == settings
    for n, p in peft_model.named_parameters():
        parameter, value, requires_grad = tensors[n]
        assert p is parameter
        assert torch.equal(p, value)
        assert p.requires_grad == requires_grad


# --- fresh adapters ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_layers_and_config_follow_the_plan(name):
    """Ranks, alphas, scales, shapes and parameter count are the plan's; logits stay."""
    peft_model, plan = adapted(name)
    batch = make_batch(name, [5, 3])
    peft_model.eval()
    logits = peft_model(**batch).logits

    resize_adapter(peft_model, plan)

    assert resolved(peft_model) == planned(plan)
    assert lora_parameters(peft_model) == plan.spent.parameters
    for module in plan.modules:
        layer = lora_layers(peft_model)[module.name]
        A, B = layer.lora_A["default"], layer.lora_B["default"]
        assert A.weight.shape == (A.out_features, A.in_features)
        assert B.weight.shape == (B.out_features, B.in_features)
    assert torch.equal(peft_model(**batch).logits, logits)


def test_leading_rows_stay_and_new_rows_are_drawn():
    """Rows of A up to the smaller rank are kept bit for bit; new ones look like PEFT's."""
    peft_model, plan = adapted("llama_gqa_lm")
    before = lora_tensors(peft_model)

    resize_adapter(peft_model, plan)

    for n, tensor in lora_tensors(peft_model).items():
        if "lora_B" in n:
            assert not tensor.any()
            continue
        kept = min(len(tensor), R)
        assert torch.equal(tensor[:kept], before[n][:kept])
        bound = tensor.shape[1] ** -0.5
        assert tensor.abs().max() <= bound
        assert tensor[kept:].any(dim=1).all()


def test_new_rows_depend_on_seed_and_name_only():
    """The global random state is neither read nor moved."""
    results = []
    for global_seed, seed in [(0, 5), (1, 5), (1, 6)]:
        peft_model, plan = adapted("llama_gqa_lm")
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        resize_adapter(peft_model, plan, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(lora_tensors(peft_model))

    first, same, other = results
    assert all(torch.equal(first[n], same[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize("name", NAMES)
def test_stock_peft_gives_the_same_adapter_back(name, tmp_path):
    """Rank, alpha, scale and weights of every module survive saving and loading."""
    peft_model, plan = adapted(name)
    resize_adapter(peft_model, plan)
    train(peft_model, make_batch(name, [5, 3]), steps=2)

    loaded = round_trip(peft_model, name, tmp_path)

    assert resolved(loaded) == planned(plan)
    ours, theirs = lora_tensors(peft_model), lora_tensors(loaded)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("name", NAMES)
def test_a_clone_built_from_the_config_has_the_same_shapes(name):
    """The config alone describes the resized adapter."""
    peft_model, plan = adapted(name)
    resize_adapter(peft_model, plan)

    clone = get_peft_model(tiny(name)[0], peft_model.peft_config["default"])

    ours, theirs = lora_tensors(peft_model), lora_tensors(clone)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert resolved(clone) == planned(plan)


def test_a_resized_adapter_trains_all_of_itself():
    """Every LoRA tensor gets a gradient, also the rows that are new."""
    peft_model, plan = adapted("llama_gqa_lm")
    resize_adapter(peft_model, plan)

    train(peft_model, make_batch("llama_gqa_lm", [7, 6, 5]), steps=2)

    for n, tensor in lora_tensors(peft_model).items():
        if "lora_B" in n:
            assert tensor.any(dim=0).all()


def test_a_plan_can_be_applied_twice():
    """Once resized, another plan takes the adapter anywhere else."""
    peft_model, plan = adapted("llama_gqa_lm")
    resize_adapter(peft_model, plan)
    other = plan_of(plan.modules, [2, 6])

    resize_adapter(peft_model, other)

    assert resolved(peft_model) == planned(other)
    assert peft_model.peft_config["default"].r == 6


# --- scale -------------------------------------------------------------------------------


def test_rank_stabilised_lora_keeps_its_scale(tmp_path):
    """Alpha follows the root of the rank: 16 to 4 at alpha 32 gives 16 and not 8."""
    model, targets = tiny("llama_gqa_lm")
    peft_model = uniform_peft(model, targets, r=16, lora_alpha=32, use_rslora=True)
    plan = plan_of(find_targets(model, None), [4, 16, 9])

    resize_adapter(peft_model, plan)

    assert {r: alpha for r, alpha, _ in resolved(peft_model).values()} == {4: 16, 16: 32, 9: 24}
    for _, _, scale in resolved(peft_model).values():
        assert scale == pytest.approx(32 / math.sqrt(16), rel=1e-12)
    assert resolved(round_trip(peft_model, "llama_gqa_lm", tmp_path)) == resolved(peft_model)


def test_a_scale_that_is_no_integer_is_kept(tmp_path):
    """Alpha 16 at rank 64 is a scale of a quarter; alphas are then fractions."""
    peft_model, plan = adapted("llama_gqa_lm", lora_alpha=1)

    resize_adapter(peft_model, plan)

    for n, (rank, alpha, scale) in resolved(peft_model).items():
        assert (rank, alpha, scale) == (plan.ranks[n], plan.ranks[n] / 4, 0.25)
    assert resolved(round_trip(peft_model, "llama_gqa_lm", tmp_path)) == resolved(peft_model)


def test_modules_of_unequal_scale_keep_their_own(tmp_path):
    """An alpha pattern that was there before is honoured, not overwritten."""
    pattern = {"model.layers.0.self_attn.q_proj": 12}
    peft_model, plan = adapted("llama_gqa_lm", alpha_pattern=pattern)

    resize_adapter(peft_model, plan)

    scales = {n: scale for n, (_, _, scale) in resolved(peft_model).items()}
    assert scales.pop("model.layers.0.self_attn.q_proj") == 3
    assert set(scales.values()) == {2}
    assert resolved(round_trip(peft_model, "llama_gqa_lm", tmp_path)) == resolved(peft_model)


# --- trained adapters --------------------------------------------------------------------


def nearest_of_rank(update, rank):
    """The best approximation of a lower rank, by the SVD of the whole matrix."""
    U, S, Vh = torch.linalg.svd(update.double(), full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_adapter_loses_only_the_least_of_its_update(name):
    """Shrunk layers have the nearest update of their rank; grown ones the very same."""
    peft_model, plan = adapted(name)
    train(peft_model, make_batch(name, [7, 6, 5]), steps=5)
    before = updates(peft_model)

    resize_adapter(peft_model, plan)

    after = updates(peft_model)
    transposed = name == "gpt2_lm"
    for n, rank in plan.ranks.items():
        if rank >= R:
            assert torch.equal(after[n], before[n]) or torch.allclose(
                after[n], before[n], atol=1e-7
            )
        else:
            wanted = nearest_of_rank(before[n].T if transposed else before[n], rank)
            found = (after[n].T if transposed else after[n]).double()
            assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_a_layer_smaller_than_its_rank_is_resized_too():
    """An update of a 3-row layer has rank 3 at most, whatever r says."""
    model = nn.Sequential(nn.Linear(6, 3))
    peft_model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["0"]))
    nn.init.ones_(lora_layers(peft_model)["0"].lora_B["default"].weight)
    before = updates(peft_model)["0"]

    resize_adapter(peft_model, plan_of(find_targets(model, None), [5]))

    assert lora_layers(peft_model)["0"].lora_A["default"].weight.shape == (5, 6)
    assert torch.allclose(updates(peft_model)["0"], before, atol=1e-6)


# --- what it leaves alone ----------------------------------------------------------------


def test_other_adapters_and_flags_stay():
    """Only the named adapter changes; a frozen one stays frozen, on its dtype."""
    model, targets = tiny("llama_gqa_lm", torch.bfloat16)
    peft_model = uniform_peft(model, targets, r=R)
    peft_model.add_adapter("second", LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    plan = plan_of(find_targets(model, None), RANKS)
    first, trains = (
        resolved(peft_model),
        {n: p.requires_grad for n, p in peft_model.named_parameters()},
    )

    resize_adapter(peft_model, plan, "second")

    assert resolved(peft_model) == first
    assert resolved(peft_model, "second") == planned(plan)
    assert {n: p.requires_grad for n, p in peft_model.named_parameters()} == trains
    layer = lora_layers(peft_model)["model.layers.0.mlp.up_proj"]
    assert layer.lora_A["second"].weight.dtype == layer.lora_A["default"].weight.dtype


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"use_dora": True}, UnsupportedModule, "DoRA"),
        ({"init_lora_weights": "pissa"}, UnsupportedModule, "pissa"),
        ({"lora_bias": True}, UnsupportedModule, "which a plan does not count"),
    ],
)
def test_variants_that_cannot_be_resized_are_refused(options, error, message):
    """The error names what was found, and the model is as it was."""
    peft_model, plan = adapted("llama_gqa_lm", **options)
    state = state_of(peft_model)

    with pytest.raises(error, match=message):
        resize_adapter(peft_model, plan)

    assert_unchanged(peft_model, state)


def test_layers_that_are_not_linear_are_refused():
    """LoRA on a convolution or an embedding is named."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 8))
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["0", "2"]))
    with pytest.raises(UnsupportedModule, match=r"0 is a .*Conv2d"):
        live_adapter(peft_model)

    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8))
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["0", "1"]))
    with pytest.raises(UnsupportedModule, match="0 is an embedding"):
        live_adapter(peft_model)


def test_plans_for_other_modules_are_refused():
    """A plan must say something about every layer, and nothing about others."""
    peft_model, plan = adapted("llama_gqa_lm")
    state = state_of(peft_model)

    with pytest.raises(InvalidOption, match=re.escape(plan.modules[0].name)):
        resize_adapter(peft_model, plan_of(plan.modules[1:], RANKS))
    with pytest.raises(InvalidOption, match="rank 0"):
        resize_adapter(peft_model, plan_of(plan.modules, [4, 0]))
    with pytest.raises(InvalidOption, match="no LoRA adapter 'other'; it has: \\['default'\\]"):
        resize_adapter(peft_model, plan, "other")
    with pytest.raises(InvalidOption, match="it has: none"):
        resize_adapter(tiny("llama_gqa_lm")[0], plan)

    assert_unchanged(peft_model, state)


def test_a_merged_adapter_is_refused():
    """Its update is in the base weight and could not be taken out again."""
    peft_model, plan = adapted("llama_gqa_lm")
    peft_model.merge_adapter()

    with pytest.raises(InvalidOption, match="unmerge"):
        resize_adapter(peft_model, plan)
