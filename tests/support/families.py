"""Tiny models of families that stock PEFT treats in its own way, built from configs."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

_SMALL = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"moe_intermediate_size": 8, "num_experts_per_tok": 2}
_DEEPSEEK = _EXPERTS | {
    "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip

# Class, config and options of models whose gate, up and down projections PEFT puts on experts.
REWRITTEN = {
    "qwen3_moe_mlp_only": ("Qwen3MoeForCausalLM", _EXPERTS | {"num_experts": 4, "mlp_only_layers": [0]}),
    "qwen3_moe_sparse_step": ("Qwen3MoeForCausalLM", _EXPERTS | {"num_experts": 4, "decoder_sparse_step": 2}),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        _EXPERTS | {
            "num_experts": 4, "shared_expert_intermediate_size": 8, "linear_num_key_heads": 2,
            "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        },
    ),
    "deepseek_v2": ("DeepseekV2ForCausalLM", _DEEPSEEK),
    "deepseek_v3": ("DeepseekV3ForCausalLM", _DEEPSEEK),
    "glm4_moe": (
        "Glm4MoeForCausalLM",
        _EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    "ernie4_5_moe": (
        "Ernie4_5_MoeForCausalLM",
        {"moe_intermediate_size": 8, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    ),
    "dots1": (
        "Dots1ForCausalLM",
        _EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    "hunyuan": (
        "HunYuanMoEV1ForCausalLM",
        {"num_experts": 4, "moe_topk": 2, "use_cla": False},
    ),
    "exaone_moe": (
        "ExaoneMoeForCausalLM",
        _EXPERTS | {"num_experts": 4, "num_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    "longcat_flash": (
        "LongcatFlashForCausalLM",
        _DEEPSEEK | {"num_layers": 1, "ffn_hidden_size": 16, "expert_ffn_hidden_size": 8, "moe_topk": 2, "zero_expert_num": 0},
    ),
    "solar_open": (
        "SolarOpenForCausalLM",
        _EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    "afmoe": (
        "AfmoeForCausalLM",
        _EXPERTS | {"num_experts": 4, "num_shared_experts": 1, "num_dense_layers": 1},
    ),
}  # fmt: skip
# Mixtures that PEFT leaves as they are.
UNTOUCHED = {
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 8},
    ),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}),
    "lfm2_moe": (
        "Lfm2MoeForCausalLM",
        _EXPERTS | {"num_experts": 4, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    ),
    "llama4": (
        "Llama4ForCausalLM",
        {"intermediate_size_mlp": 16, "num_local_experts": 4, "moe_layers": [1], "layer_types": ["full_attention"] * 2},
    ),
    "granitemoeshared": (
        "GraniteMoeSharedForCausalLM",
        {"num_local_experts": 4, "shared_intermediate_size": 16},
    ),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2}),
    "llama": ("LlamaForCausalLM", {}),
}  # fmt: skip
_MAMBA2 = {"state_size": 8, "num_heads": 4, "head_dim": 8, "n_groups": 2, "expand": 2}
# Models whose out_proj PEFT refuses.
STATE_SPACE = {
    "mamba": ("MambaForCausalLM", {"state_size": 8, "time_step_rank": 4}),
    "mamba2": ("Mamba2ForCausalLM", _MAMBA2),
    "falcon_mamba": ("FalconMambaForCausalLM", {"state_size": 8, "time_step_rank": 4}),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
    ),
    "nemotron_h": (
        "NemotronHForCausalLM",
        {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8},
    ),
}  # fmt: skip
# State-space models that PEFT takes as they are.
FREE_STATE_SPACE = {
    "bamba": (
        "BambaForCausalLM",
        {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
    ),
    "zamba2": (
        "Zamba2ForCausalLM",
        {
            "layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 4, "mamba_headdim": 8,
            "mamba_ngroups": 1, "mamba_d_state": 8, "num_mem_blocks": 1, "adapter_rank": 4,
        },
    ),
    "jamba": (
        "JambaForCausalLM",
        {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    ),
}  # fmt: skip
_CLASSIFIER = {"num_labels": 3}
CLASSIFIERS = {
    "roberta": ("RobertaForSequenceClassification", _CLASSIFIER),
    "electra": ("ElectraForSequenceClassification", _CLASSIFIER | {"embedding_size": 16}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        _CLASSIFIER | {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    ),
    "bert": ("BertForSequenceClassification", _CLASSIFIER),
    "deberta_v2": ("DebertaV2ForSequenceClassification", _CLASSIFIER | {"pooler_hidden_size": 16}),
    "gpt2_classifier": (
        "GPT2ForSequenceClassification",
        _CLASSIFIER | {"n_embd": 16, "n_layer": 2, "n_head": 2},
    ),
}  # fmt: skip
FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = (
    REWRITTEN | UNTOUCHED | STATE_SPACE | FREE_STATE_SPACE | CLASSIFIERS
)


def build(name: str) -> nn.Module:
    """A tiny model of a family, the same at every call."""
    class_name, options = FAMILIES[name]
    model_class: Any = getattr(transformers, class_name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = model_class(model_class.config_class(**(_SMALL | options)))
    return model.eval()


def task_of(name: str) -> str:
    """PEFT's word for what a family's model is trained for."""
    return "SEQ_CLS" if name in CLASSIFIERS else "CAUSAL_LM"
