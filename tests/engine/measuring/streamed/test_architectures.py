"""Streamed equals resident whatever a model does around and inside its blocks.

Masks, rotary tables and position biases are made by the model's own forward pass, so what
is tested is that nothing of them is assumed: local and global layers that take turns, biases
that a block hands on, blocks of two kinds, padding on either side.
"""

import pytest
import torch
import transformers

from fimlora import Settings, measure, measure_streamed
from fimlora.errors import UnsupportedModule
from fimlora.measuring.streamed.boundary_store import BoundaryStore
from fimlora.measuring.streamed.paused_forward import PendingCall
from fimlora.measuring.streamed.recompute import BlockCalls
from support.models import N_CLASSES, PAD, VOCABULARY, make_batch
from support.streaming import ALL, assert_same, quiet, save

__all__ = ["quiet"]  # a fixture of every test here

COMMON = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
}
WINDOW = {"sliding_window": 4, "head_dim": 8}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
DECODERS = {
    "Mistral": WINDOW,
    "Qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "Qwen3": {"head_dim": 8},
    "Gemma2": WINDOW,  # caps its logits, too
    "Gemma3": {**WINDOW, "layer_types": ALTERNATING},  # a rotary table for each kind of layer
    "GptOss": {**WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},  # attention sinks
    "Llama4": {  # complex rotary factors; asks for the device of its embedding
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 40,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 4,
        "head_dim": 8,
    },
    "Phi": {},  # attention and feed-forward side by side
    "GPTNeoX": {},
    "GPTNeo": {"num_layers": 3, "attention_types": [[["global", "local", "global"], 1]]},
    "OPT": {"ffn_dim": 40, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "Falcon": {"alibi": True},
    "Bloom": {"n_layer": 3, "n_head": 4},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},  # stored apart, run fused
    "DeepseekV3": {  # its first block is dense, the others are mixtures
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
}
ENCODERS = {
    "Roberta": {},
    "ModernBert": {
        "local_attention": 4,
        "global_attn_every_n_layers": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "MPNet": {},  # one table of relative positions for all blocks
    "DistilBert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 40},
}


def build(kind: str, head: str, **options):
    name = {"Gemma3": "Gemma3Text", "Llama4": "Llama4Text"}.get(kind, kind)
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **options})
    return getattr(transformers, f"{kind}For{head}")(config)


def from_the_left(batch: dict) -> dict:
    """The same examples, padded on the other side."""
    shifts = (1 - batch["attention_mask"]).sum(dim=1).tolist()
    return {
        name: torch.stack([row.roll(n) for row, n in zip(value, shifts, strict=True)])
        for name, value in batch.items()
    }


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_decoders(kind, tmp_path):
    """One batch is padded on the right, one on the left."""
    resident = save(build(kind, "CausalLM", **DECODERS[kind]), tmp_path)
    right, left = (make_batch("llama_gqa_lm", n) for n in ([9, 5, 7, 2], [6, 9, 3]))
    batches = [right, from_the_left(left)]

    targets = "all-linear" if kind != "Llama4" else ["q_proj", "down_proj"]

    streamed = measure_streamed(tmp_path, batches, Settings(target_modules=targets, **ALL))

    assert_same(streamed, measure(resident, batches, target_modules=targets, **ALL))


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_encoders(kind, tmp_path):
    """With targets outside of the blocks, in their heads."""
    options = {"num_labels": N_CLASSES, **ENCODERS[kind]}
    resident = save(build(kind, "SequenceClassification", **options), tmp_path)
    batches = [make_batch("bert_classifier", n) for n in ([9, 5, 7, 2], [6, 9, 3])]

    streamed = measure_streamed(tmp_path, batches, Settings(target_modules="all-linear", **ALL))

    assert_same(streamed, measure(resident, batches, target_modules="all-linear", **ALL))


def test_the_text_part_of_a_model_that_also_sees(tmp_path):
    """Blocks of its vision tower never run; its configs ask for a cache that is not wanted."""
    eye = transformers.CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
        image_size=8, patch_size=4,
    )  # fmt: skip
    text = transformers.LlamaConfig(**COMMON)
    config = transformers.LlavaConfig(text_config=text, vision_config=eye, image_token_index=60)
    torch.manual_seed(0)
    resident = save(transformers.LlavaForConditionalGeneration(config), tmp_path)
    batches = [make_batch("llama_gqa_lm", [9, 5])]
    options = {"target_modules": r".*language_model.*(q_proj|down_proj)"}

    streamed = measure_streamed(tmp_path, batches, Settings(**options, **ALL), config=config)

    assert_same(streamed, measure(resident, batches, **options, **ALL))
    assert config.text_config.use_cache


def test_an_input_without_values_is_refused_by_name(tmp_path):
    """A model that looks at the device of a block's weights makes some; no kernel minds."""
    call = PendingCall("layers.0", (torch.empty(2, 3, device="meta"),), {})

    with pytest.raises(UnsupportedModule, match=r"layers\.0.*no values.*measure it resident"):
        BlockCalls(BoundaryStore(tmp_path, None)).run(torch.nn.Identity(), call, keeps=False)


def test_a_block_that_all_layers_share_is_refused_by_name(tmp_path):
    """It would have to be loaded for every layer; such a model is small anyway."""
    model = build("Albert", "SequenceClassification", embedding_size=16)
    model.save_pretrained(tmp_path)
    batches = [make_batch("bert_classifier", [4, 3])]

    with pytest.raises(UnsupportedModule, match=r"albert_layer_groups\.0.*measure it resident"):
        measure_streamed(tmp_path, batches, Settings(target_modules=["query"]))
