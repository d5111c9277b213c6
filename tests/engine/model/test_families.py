"""Families of modules: towers of models that see or hear, kinds of mixer of hybrids."""

from collections import defaultdict

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from families.registry import FAMILIES
from fimlora import find_targets
from fimlora.model.families import with_families
from fimlora.model.targets import all_linear_maps

# By what the last or the last but one part of a module's name is, in each family.
TOWERS = {
    "llava/vision_text": {
        "vision": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
        "connector": {"linear_1", "linear_2"},
        "language": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"},
    },
    "qwen3_vl/vision_text": {
        "vision": {"qkv", "proj", "linear_fc1", "linear_fc2"},
        "connector": {"linear_fc1", "linear_fc2"},
        "language": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"},
    },
    "gemma4/causal_lm": {"vision", "audio", "connector", "language"},
    "idefics2/vision_text": {"vision", "connector", "language"},
    "jamba/causal_lm": {
        "language.ssm": {"in_proj", "x_proj", "dt_proj", "out_proj"},
        "language.mlp": {"gate_proj", "up_proj", "down_proj"},
        "language.attention": {"q_proj", "k_proj", "v_proj", "o_proj"},
        "language": {"lm_head"},
    },
    "falcon_h1/causal_lm": {
        "language.ssm": {"in_proj", "out_proj"},
        "language.mlp": {"gate_proj", "up_proj", "down_proj"},
        "language.attention": {"q_proj", "k_proj", "v_proj", "o_proj"},
        "language": {"lm_head"},
    },
    "qwen3_next/causal_lm": {
        "language.linear_attention": {"in_proj_qkvz", "in_proj_ba", "out_proj"},
        "language.experts": {"gate_proj", "up_proj", "down_proj", "shared_expert_gate"},
        "language.attention": {"q_proj", "k_proj", "v_proj", "o_proj"},
        "language": {"lm_head"},
    },
    "lfm2/causal_lm": {
        "language.conv": {"in_proj", "out_proj"},
        "language.mlp": {"w1", "w2", "w3"},
        "language.attention": {"q_proj", "k_proj", "v_proj", "out_proj"},
        "language": {"lm_head"},
    },
    # Mixers of one kind, whatever the model is called, and one tower: nothing is said.
    "llama/causal_lm": {None},
    "mixtral/causal_lm": {None},
    "falcon_mamba/causal_lm": {None},
    "t5/seq2seq_lm": {None},
    "gpt2/classification": {None},
}  # fmt: skip


def without_weights(name):
    family = FAMILIES[name]
    with torch.device("meta"):
        return family.model_class(family.config())


def families_of(model):
    found = defaultdict(set)
    for module in with_families(model, dict(model.named_modules()), all_linear_maps(model)):
        found[module.family].add(module.name.rpartition(".")[2])
    return dict(found)


@pytest.mark.parametrize("name", TOWERS)
def test_families_follow_from_what_a_model_is_made_of(name):
    found, wanted = families_of(without_weights(name)), TOWERS[name]

    assert found == wanted if isinstance(wanted, dict) else set(found) == wanted


def test_a_decoder_that_reads_what_an_encoder_hears_is_language():
    """Whisper has one configuration for both, which say by themselves what they read."""
    with torch.device("meta"):
        model = transformers.WhisperForConditionalGeneration(
            transformers.WhisperConfig(
                vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1,
                encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
                decoder_ffn_dim=24, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                decoder_start_token_id=1,
            )
        )  # fmt: skip

    tower = {m.name: m.family for m in find_targets(model, ["q_proj", "proj_out"])}

    assert tower == {
        "model.encoder.layers.0.self_attn.q_proj": "audio",
        "model.decoder.layers.0.self_attn.q_proj": "language",
        "model.decoder.layers.0.encoder_attn.q_proj": "language",
        "proj_out": "language",
    }


def test_a_model_that_peft_has_wrapped_has_the_same():
    """Names and classes are looked up where they were before."""
    names = [".*language.*[qk]_proj", ".*vision_tower.*[qk]_proj", ".*linear_1"]
    plain = {
        m.name: m.family
        for m in find_targets(without_weights("llava/vision_text"), f"({'|'.join(names)})")
    }
    wrapped = get_peft_model(
        without_weights("llava/vision_text"),
        LoraConfig(target_modules=f"({'|'.join(names)})", modules_to_save=["linear_2"]),
    )

    assert {m.name: m.family for m in find_targets(wrapped)} == plain
    assert set(plain.values()) == {"language", "vision", "connector"}
