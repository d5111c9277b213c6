"""Models that are compiled, as a whole or in parts, are measured and resized as what they are."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from fimlora import apply_fim_ranks, find_targets, measure, score, write_adapter
from fimlora.model.compiled import plain_name, running_uncompiled
from support.models import make_batch, tiny
from support.peft_models import lora_layers
from support.plans import plan_of

TARGETS = ["q_proj", "down_proj"]


def in_parts(layers):
    for i, layer in enumerate(layers):
        layers[i] = torch.compile(layer, backend="eager")


def in_place(layers):
    for layer in layers:
        layer.compile(backend="eager")


def by_forward(layers):
    for layer in layers:
        layer.forward = torch.compile(layer.forward, backend="eager")


COMPILERS = [in_parts, in_place, by_forward]


def batches():
    return [make_batch("llama_gqa_lm", [15, 9, 7, 3])]


def compiled(compiler):
    model, _ = tiny("llama_gqa_lm")
    if compiler is None:
        return torch.compile(model, backend="eager")
    compiler(model.model.layers)
    return model


@pytest.mark.parametrize("compiler", [None, *COMPILERS])
def test_statistics_are_those_of_the_plain_model(compiler):
    """Under its names, bit for bit, and the model is compiled still when it is over."""
    wanted = measure(tiny("llama_gqa_lm")[0], batches(), target_modules=TARGETS)
    model = compiled(compiler)
    before = list(model.named_modules())

    found = measure(model, batches(), target_modules=TARGETS)

    assert found.modules == wanted.modules == find_targets(model, TARGETS)
    assert score(found).by_module == score(wanted).by_module
    assert list(model.named_modules()) == before


def test_all_linear_means_the_same_modules():
    """Wrappers hide none and name none."""
    model, _ = tiny("llama_gqa_lm")

    assert find_targets(compiled(in_parts), "all-linear") == find_targets(model, "all-linear")


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_live_adapter_is_resized(compiler, tmp_path):
    """To the ranks that the plain model gets, under names that a fresh load has."""
    options = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
    plain = get_peft_model(tiny("llama_gqa_lm")[0], options)
    wanted = apply_fim_ranks(plain, batches())
    model, _ = tiny("llama_gqa_lm")
    live = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    compiler(model.model.layers)

    plan = apply_fim_ranks(live, batches())

    assert plan.ranks == wanted.ranks
    assert {plain_name(n): m.r["default"] for n, m in lora_layers(live).items()} == plan.ranks
    config = live.peft_config["default"]
    assert config.rank_pattern == plain.peft_config["default"].rank_pattern


def test_an_adapter_of_a_compiled_model_loads_on_a_fresh_one(tmp_path):
    """It is written, and proved, under the names of the model that was compiled."""
    model = compiled(in_parts)
    plan = plan_of(find_targets(model, TARGETS), [3, 8, 1])

    write_adapter(
        plan, tmp_path / "a", base_model="a/b", task_type="CAUSAL_LM", weights=True, model=model
    )

    loaded = PeftModel.from_pretrained(tiny("llama_gqa_lm")[0], tmp_path / "a")
    assert {n: m.r["default"] for n, m in lora_layers(loaded).items()} == plan.ranks


def test_wrappers_are_back_when_a_measurement_fails():
    """Whatever it fails by."""
    model = compiled(in_parts)
    before = list(model.named_modules())

    def fail():
        with running_uncompiled(model):
            assert "_orig_mod" not in " ".join(n for n, _ in model.named_modules())
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()

    assert list(model.named_modules()) == before
