"""Experts of a width that torch's grouped product does not take: run by their loop, or named."""

import pytest
import torch
import transformers

from fimlora import measure
from fimlora.errors import UnsupportedModule
from fimlora.model.experts.grouped import find_misfit
from fimlora.model.loading import load
from fimlora.model.skeleton import build_skeleton

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
CLASSES = {
    "qwen3_moe": (transformers.Qwen3MoeForCausalLM, "moe_intermediate_size", "num_experts"),
    "mixtral": (transformers.MixtralForCausalLM, "intermediate_size", "num_local_experts"),
    "gpt_oss": (transformers.GptOssForCausalLM, "intermediate_size", "num_local_experts"),
}
IDS = torch.arange(3, 17).reshape(2, 7)
BATCH = {"input_ids": IDS, "labels": IDS}


def mixture_of(name: str, width: int, dtype: torch.dtype = torch.float32):
    """A tiny mixture with experts of a width."""
    model_class, of_width, of_experts = CLASSES[name]
    options = SIZES | {of_width: width, of_experts: 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = model_class.config_class(**options)
        return model_class(config).to(dtype).eval()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [15, 20, 24, 32])
def test_what_is_found_is_what_torch_refuses(name, dtype, width):
    """Of a model that would be run by the grouped product; the loop runs them all."""
    model = mixture_of(name, width, dtype)
    assert model.config._experts_implementation == "grouped_mm"

    if find_misfit(model) is None:
        assert model(IDS).logits.isfinite().all()
    else:
        with pytest.raises(RuntimeError, match="16 bytes"):
            model(IDS)
    model.set_experts_implementation("eager")
    assert find_misfit(model) is None
    assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize("target_parameters", [None, "all"])
def test_a_live_model_is_refused_with_the_cause_and_the_next_step(target_parameters):
    """Which is right: with it, the model is measured."""
    model = mixture_of("qwen3_moe", 15)
    options = {"target_modules": ["q_proj"], "target_parameters": target_parameters}

    with pytest.raises(UnsupportedModule) as caught:
        measure(model, [BATCH], **options)

    assert "'model.layers.0.mlp.experts.gate_up_proj' have a side of 30" in str(caught.value)
    assert "model.set_experts_implementation('eager')" in str(caught.value)
    model.set_experts_implementation("eager")
    assert measure(model, [BATCH], **options).modules


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("width", [15, 32])
def test_a_model_of_a_folder_is_run_by_the_loop_where_it_must_be(tmp_path, name, width):
    """The same numbers as the class's own loop; a width that fits is run as it was."""
    model = mixture_of(name, width)
    model.save_pretrained(tmp_path)
    model.set_experts_implementation("eager" if width == 15 else "grouped_mm")

    skeleton = build_skeleton(tmp_path)
    loaded = load(skeleton, tmp_path, seed=0).model

    way = "eager" if width == 15 else "grouped_mm"
    assert loaded.config._experts_implementation == way
    assert skeleton.config._experts_implementation == way
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert measure(loaded, [BATCH], target_modules=["q_proj"], target_parameters="all").modules
