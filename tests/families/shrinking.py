"""Make any config of transformers tiny: its own sizes, replaced by small ones that fit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import transformers

VOCABULARY = 120
PAD, BOS, EOS = 1, 2, 3

# What every config that has the field gets; a family's own overrides go before.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
    "sep_token_id": EOS, "decoder_start_token_id": BOS, "cls_token_id": BOS,
    "mask_token_id": 4, "forced_eos_token_id": None, "eod_token_id": EOS,
    "pad_index": PAD, "bos_index": BOS, "eos_index": EOS, "unk_index": 4, "mask_index": 5,
    # widths
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 32, "emb_dim": 32,
    "embedding_size": 32, "word_embed_proj_dim": 32, "input_embedding_size": 32,
    "output_embedding_size": 32, "pooler_hidden_size": 32, "pronunciation_embed_dim": 8,
    "shape_embed_dim": 8, "intermediate_size": 40, "ffn_dim": 40, "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40, "hidden_dim": 40, "d_ff": 40, "d_inner": 40, "n_inner": 40,
    "dff": 40, "dim_ff": 40, "feed_forward_size": 40, "ffn_hidden_size": 40,
    "expert_ffn_hidden_size": 16, "intermediate_size_mlp": 40, "dense_intermediate_size": 40,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24, "shared_experts_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24, "prediction_head_size": 32,
    # depth
    "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2, "encoder_layers": 2,
    "decoder_layers": 2, "num_encoder_layers": 2, "num_decoder_layers": 2, "depth": 2,
    "max_window_layers": 1, "first_k_dense_replace": 1, "num_dense_layers": 1,
    "num_kv_shared_layers": 0, "num_nextn_predict_layers": 0, "num_mtp_layers": 0,
    # heads
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "attention_heads": 4,
    "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "d_head": 8, "dim_head": 8,
    "attention_head_size": 8, "kv_channels": 8, "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2, "swa_head_dim": 8, "swa_v_head_dim": 8, "rotary_dim": 4,
    "q_lora_rank": 16, "kv_lora_rank": 16, "o_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "index_head_dim": 8, "index_n_heads": 2,
    "index_topk": 8, "global_head_dim": 8, "num_global_key_value_heads": 2,
    # mixtures
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "top_k_experts": 2, "n_group": 1,
    "topk_group": 1, "n_shared_experts": 1, "num_shared_experts": 1,
    "moe_num_shared_experts": 1, "zero_expert_num": 2,
    "experts_implementation": "eager",  # the grouped kernel knows no float64
    # state spaces and linear attention
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_head_dim": 8, "linear_num_heads": 4,
    "state_size": 8, "mamba_d_state": 8, "ssm_state_size": 8, "mamba_n_heads": 8,
    "mamba_num_heads": 8, "mamba_d_head": 8, "mamba_head_dim": 8, "mamba_d_ssm": 64,
    "n_mamba_heads": 2, "mamba_dt_rank": 4, "time_step_rank": 4, "chunk_size": 16,
    "mamba_chunk_size": 16, "n_groups": 1, "mamba_n_groups": 1, "mamba_ngroups": 1,
    # tables
    "max_position_embeddings": 192, "n_positions": 192, "n_ctx": 192, "max_seq_len": 192,
    "max_source_positions": 192, "max_target_positions": 192, "context_length": 192,
    "type_vocab_size": 2, "sliding_window": 8, "sliding_window_size": 8, "local_attention": 8,
    "attention_window": 8, "attention_window_size": 8, "attention_chunk_size": 16,
    "window_size": 8, "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8, "laurel_rank": 8, "pronunciation_vocab_size": 20,
    "shape_vocab_size": VOCABULARY, "entity_vocab_size": 20, "entity_emb_size": 8,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 32,
    # what an eye or an ear has
    "image_size": 16, "patch_size": 8, "image_token_id": 110, "image_token_index": 110,
    "video_token_id": 111, "video_token_index": 111, "audio_token_id": 112,
    "audio_token_index": 112, "vision_start_token_id": 113, "vision_end_token_id": 114,
    "boi_token_id": 115, "boi_token_index": 115, "eoi_token_id": 116, "eoi_token_index": 116,
    "boa_token_id": 117, "eoa_token_id": 118, "eoa_token_index": 118,
    "vision_soft_tokens_per_image": 4, "mm_tokens_per_image": 4,
    "projection_dim": 32, "out_hidden_size": 32,
}  # fmt: skip


def tiny_config(config_class: Any, /, **overrides: Any) -> Any:
    """Build a config of this class with small sizes.

    An override for a config inside (``text_config={...}``) is a mapping, too; `KEEP` leaves a
    field at the class's own default.
    """
    known = _fields(config_class)
    options = {name: value for name, value in SIZES.items() if name in known}
    for name, inner in getattr(config_class, "sub_configs", {}).items():
        given = overrides.pop(name, {})
        if isinstance(given, Mapping):
            options[name] = _inner_config(config_class, name, inner, given)
        else:
            options[name] = given
    options |= overrides
    return config_class(**{n: v for n, v in options.items() if v is not KEEP})


def _inner_config(outer: Any, name: str, inner: Any, given: Mapping[str, Any]) -> Any:
    """A tiny config for a part of a model; its class is the one that the outer default has."""
    if inner is transformers.AutoConfig:
        given = dict(given)
        model_type = given.pop("model_type", None)
        default = None if model_type else getattr(outer(), name)
        if model_type is None and default is None:
            return None
        inner = transformers.CONFIG_MAPPING[model_type] if model_type else type(default)
    return tiny_config(inner, **given)


def _fields(config_class: Any) -> set[str]:
    renamed = getattr(config_class, "attribute_map", {})
    return {field.name for field in dataclasses.fields(config_class)} - set(renamed)


class _Keep:
    """Stands for the class's own default."""


KEEP = _Keep()
