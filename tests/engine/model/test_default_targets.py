"""What is targeted when nobody says: PEFT's table first, then its convention."""

import re
from collections import Counter

import pytest
import torch
import transformers
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from fimlora import find_targets, measure
from fimlora.errors import UnknownTarget
from support.models import make_batch, tiny
from support.partly_run import PARTLY_RUN
from support.peft_models import lora_layers, uniform_peft
from support.reference import lora_b_squares_by_peft, relative_error

SMALL = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
    "vocab_size": 61, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 6, "first_k_dense_replace": 2,
}  # fmt: skip


def built(auto, model_type, **options):
    config = transformers.CONFIG_MAPPING[model_type](**options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, auto).from_config(config).eval()


def leaves(model):
    return Counter(m.name.rpartition(".")[2] for m in find_targets(model))


@pytest.mark.parametrize(
    "name", ["bert_classifier", "deberta_v2_classifier", "llama_gqa_lm", "gpt2_lm"]
)
def test_where_peft_has_a_default_it_is_that(name):
    """Without a list, PEFT adapts the same modules as we would measure."""
    ours = {m.name for m in find_targets(tiny(name)[0])}

    assert ours == set(lora_layers(uniform_peft(tiny(name)[0], None)))


@pytest.mark.parametrize(
    ("model_type", "options", "wanted"),
    [
        ("phi3", SMALL, {"qkv_proj": 2}),
        ("olmo", SMALL, {"q_proj": 2, "v_proj": 2}),
        ("olmo2", SMALL, {"q_proj": 2, "v_proj": 2}),
        ("granite", SMALL, {"q_proj": 2, "v_proj": 2}),
        ("qwen3_moe", SMALL | {"num_experts": 2, "num_experts_per_tok": 1},
         {"q_proj": 2, "v_proj": 2}),
        ("persimmon", SMALL, {"query_key_value": 2}),
        ("starcoder2", SMALL, {"q_proj": 2, "v_proj": 2}),
        ("modernbert-decoder", SMALL, {"q_proj": 2, "v_proj": 2}),
        ("deepseek_v3", SMALL | LATENT, {"q_b_proj": 2, "kv_b_proj": 2}),
        ("deepseek_v2", SMALL | LATENT | {"q_lora_rank": None}, {"q_proj": 2, "kv_b_proj": 2}),
        ("ctrl", {"n_embd": 24, "n_layer": 2, "n_head": 4, "dff": 40, "vocab_size": 61},
         {"Wq": 2, "Wv": 2}),
        ("mamba", {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 61}, {"in_proj": 2}),
        ("jamba", SMALL | {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
         {"q_proj": 2, "v_proj": 2}),
    ],
)  # fmt: skip
def test_decoders_without_one_keep_to_the_convention(model_type, options, wanted):
    """Queries and values, however the architecture calls them."""
    assert model_type not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    with torch.device("meta"):
        model = built("AutoModelForCausalLM", model_type, **options)

    assert leaves(model) == wanted


@pytest.mark.parametrize(
    ("model_type", "options", "wanted"),
    [
        ("distilbert", {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40},
         {"q_lin": 2, "v_lin": 2}),
        ("modernbert", SMALL, {"Wqkv": 2}),
        ("albert", SMALL | {"embedding_size": 8}, {"query": 1, "value": 1}),
        ("mpnet", SMALL, {"q": 2, "v": 2}),
        ("xlm", {"emb_dim": 24, "n_layers": 2, "n_heads": 4}, {"q_lin": 2, "v_lin": 2}),
        ("funnel", {"d_model": 24, "n_head": 4, "d_head": 6, "d_inner": 40, "block_sizes": [2]},
         {"q_head": 2, "v_head": 2}),
    ],
)  # fmt: skip
def test_so_do_encoders(model_type, options, wanted):
    """Heads and poolers are not among them."""
    assert model_type not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    with torch.device("meta"):
        model = built("AutoModelForSequenceClassification", model_type, **options)

    assert leaves(model) == wanted


def test_each_part_of_a_model_has_names_of_its_own():
    """The tower of Qwen2-VL fuses what its language model does not."""
    assert leaves(PARTLY_RUN["qwen2_vl"].build()) == {"q_proj": 2, "v_proj": 2, "qkv": 2}


@pytest.mark.parametrize("model_type", ["phi3", "granite"])
def test_a_default_is_measured_as_any_choice(model_type):
    """By autograd through PEFT, on a model that is built again."""
    batches = [make_batch("llama_gqa_lm", [21, 9, 7, 3])]

    statistics = measure(
        built("AutoModelForCausalLM", model_type, **SMALL), batches, estimator="sampled", rank=4,
        seed=7,
    )  # fmt: skip

    wanted = lora_b_squares_by_peft(
        built("AutoModelForCausalLM", model_type, **SMALL), batches, statistics.modules,
        rank=4, seed=7, scale=2,
    )  # fmt: skip
    for name, squares in statistics.squared_gradients.items():
        assert relative_error(4 * squares, wanted[name]) <= 1e-5, name


def test_a_model_that_keeps_to_no_convention_says_what_to_pass():
    """Nobody has chosen for it, so the caller must."""
    with torch.device("meta"):
        model = built("AutoModelForSequenceClassification", "fnet", **SMALL)

    with pytest.raises(UnknownTarget, match=r"'fnet'.* pass target_modules: .*'all-linear'"):
        find_targets(model)
    with pytest.raises(UnknownTarget, match="'unknown'"):
        find_targets(nn.Linear(2, 2))


def test_a_default_that_is_a_pattern_becomes_names(monkeypatch):
    """Some architectures have a regular expression over full names as their default."""
    pattern = r".*\.1\..*(q|v)_proj"
    monkeypatch.setitem(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, "llama", pattern)

    names = [m.name for m in find_targets(tiny("llama_gqa_lm")[0])]

    assert len(names) == 2
    assert all(re.fullmatch(pattern, name) for name in names)
