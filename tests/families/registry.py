"""The families: architectures of transformers, each with the least that makes it tiny."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from families.shrinking import KEEP, PAD, tiny_config
from support.seeing import MAKERS
from support.seeing_tiles import MORE

# What is done with a model. The first two are tasks of a job, the others of the library.
Kind = Literal["causal_lm", "classification", "seq2seq_lm", "vision_text", "media"]
N_CLASSES = 3

_FROM_PAD = {"decoder_start_token_id": PAD}
_MLA = {"num_key_value_heads": 4}
_ATTENTION_LAST = {"layer_types": ["linear_attention", "full_attention"]}
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
}  # fmt: skip

# What a family's config needs besides small sizes, by model type.
OPTIONS: dict[str, dict[str, Any]] = {
    "axk1": _MLA, "axk2": _MLA, "deepseek_v2": _MLA, "deepseek_v3": _MLA, "deepseek_v32": _MLA,
    "glm4_moe_lite": _MLA, "glm_moe_dsa": _MLA, "minicpm3": _MLA, "mistral4": _MLA,
    "youtu": _MLA, "longcat_flash": {**_MLA, "head_dim": 4},
    "albert": {"num_hidden_layers": 3},
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": {"block_size": 8, "num_random_blocks": 1},
    "bigbird_pegasus": {"block_size": 8, "num_random_blocks": 1},
    "cohere2": {"layer_types": ["sliding_attention", "full_attention"]},
    "esm": {"vocab_list": None, "position_embedding_type": "rotary"},
    "exaone4": {"layer_types": ["sliding_attention", "full_attention"]},
    "funnel": {"block_sizes": [1, 1], "d_inner": 40},
    "gemma2": {"layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"hidden_size": 36, "coordinate_size": 6, "shape_size": 6},
    "lilt": {"hidden_size": 48},
    "longt5": _FROM_PAD, "switch_transformers": _FROM_PAD, "t5": _FROM_PAD,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 8, "num_heads": 8},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32},
    "mpnet": {"relative_attention_num_buckets": KEEP},
    "phi3": {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 64},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3_5_moe_text": _ATTENTION_LAST, "qwen3_5_text": _ATTENTION_LAST,
    "qwen3_moe": {"mlp_only_layers": [0], "num_experts": 4},
    "qwen2_moe": {"mlp_only_layers": [0]},
    "qwen3_next": _ATTENTION_LAST,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True, "axial_pos_shape": [12, 16], "axial_pos_embds_dim": [16, 16],
        "lsh_attn_chunk_length": 16, "local_attn_chunk_length": 16, "attn_layers": ["local"] * 2,
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "zamba2": {
        "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

# Is trained with them, which its own processor gives: what is to be predicted is of type 1.
TYPED = frozenset({"paligemma"})

_CAUSAL_LM = """
    afmoe apertus arcee bamba biogpt bitnet bloom codegen cohere cohere2 ctrl cwm deepseek_v2
    deepseek_v3 diffllama doge dots1 ernie4_5 ernie4_5_moe exaone4 falcon falcon_h1
    falcon_mamba flex_olmo gemma gemma2 gemma3 gemma3_text gemma4 gemma4_text glm glm4 glm4_moe
    glm4_moe_lite gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite
    granitemoe granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe jamba
    jetmoe lfm2 lfm2_moe llama llama4_text longcat_flash mamba mamba2 minicpm3 minimax
    minimax_m2 ministral mistral mixtral modernbert-decoder mpt nanochat nemotron nemotron_h
    olmo olmo2 olmo3 olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe
    qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next recurrent_gemma seed_oss smollm3
    solar_open stablelm starcoder2 vaultgemma xglm zamba zamba2
"""
_CLASSIFICATION = """
    albert bart bert big_bird camembert canine convbert data2vec-text deberta deberta-v2
    distilbert electra ernie esm eurobert flaubert fnet funnel gemma gpt2 gpt_neox ibert
    jamba layoutlm lilt llama longformer megatron-bert mistral mobilebert modernbert mpnet mra
    mt5 mvp nomic_bert nystromformer opt phi3 plbart qwen2 qwen3 qwen3_moe qwen3_next rembert
    roberta roberta-prelayernorm roc_bert roformer squeezebert t5 t5gemma umt5 xlm
    xlm-roberta xlm-roberta-xl xlnet xmod yoso zamba2
"""
_SEQ2SEQ_LM = """
    bart bigbird_pegasus blenderbot fsmt led longt5 m2m_100 marian mbart mt5 mvp pegasus
    pegasus_x plbart prophetnet switch_transformers t5 t5gemma umt5
"""
_VISION_TEXT = """
    aria aya_vision gemma3 idefics2 idefics3 internvl llava llava_next llava_onevision mistral3
    paligemma qwen3_vl smolvlm vipllava
"""
# Who makes a checkpoint with its processor, by model type.
_MEDIA = {
    "gemma3": "gemma3", "idefics3": "idefics3", "llava": "llava", "paligemma": "paligemma",
    "qwen2_5_vl": "qwen_vl", "qwen2_audio": "qwen_audio", "qwen2_vl": "qwen2_vl",
} | {name: name for name in MORE}  # fmt: skip
_HEARING = frozenset({"glmasr", "qwen2_audio"})
_AUTO = {
    "media": modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    "causal_lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "seq2seq_lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "vision_text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
}


@dataclass(frozen=True)
class Family:
    """One architecture with one head.

    Attributes:
        model_type: Transformers' word for the architecture.
        kind: What is done with it.
        options: What its tiny config has besides small sizes.
    """

    model_type: str
    kind: Kind
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that the page and the command line know it by."""
        return f"{self.model_type}/{self.kind}"

    @property
    def model_class(self) -> Any:
        """The class with the head that the kind needs."""
        found = _AUTO[self.kind][self.model_type]
        return getattr(transformers, found if isinstance(found, str) else found[0])

    @property
    def pretrained_class(self) -> Any:
        """The class whose checkpoint people have: of a classifier, one without its head."""
        if self.kind != "classification":
            return self.model_class
        for mapping in (
            modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            modeling_auto.MODEL_MAPPING_NAMES,
        ):
            if name := mapping.get(self.model_type):
                return getattr(transformers, name if isinstance(name, str) else name[0])
        raise LookupError(self.model_type)

    def write(self, folder: Path) -> None:
        """A tiny checkpoint in shards, and of what sees or hears its processor."""
        if self.kind == "media":
            (MAKERS | MORE)[_MEDIA[self.model_type]](folder, max_shard_size="100KB")
        else:
            self.pretrained().save_pretrained(folder, max_shard_size="100KB")

    @property
    def hears(self) -> bool:
        """Whether its rows have sounds, and not images."""
        return self.model_type in _HEARING

    def config(self) -> Any:
        """A tiny config."""
        config_class = transformers.CONFIG_MAPPING[self.model_type]
        return tiny_config(config_class, **self.options)

    def pretrained(self) -> nn.Module:
        """A tiny checkpoint's model, drawn from a seed.

        Matrices are drawn wider than for training, so that attention is far from uniform and
        no gradient is so small that rounding rules it.
        """
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: nn.Module = self.pretrained_class(self.config()).eval()
            for module in model.modules():
                if isinstance(module, nn.Linear | transformers.pytorch_utils.Conv1D):
                    nn.init.normal_(module.weight, std=0.2)
                elif isinstance(module, nn.Embedding):
                    nn.init.normal_(module.weight, std=0.5)
            for name, parameter in model.named_parameters():
                if parameter.dim() == 3 and ".experts." in name:
                    nn.init.normal_(parameter, std=0.2)
        return model


def _families() -> dict[str, Family]:
    listed: dict[Kind, str] = {
        "causal_lm": _CAUSAL_LM,
        "classification": _CLASSIFICATION,
        "seq2seq_lm": _SEQ2SEQ_LM,
        "vision_text": _VISION_TEXT,
        "media": " ".join(_MEDIA),
    }
    found = [
        Family(model_type, kind, OPTIONS.get(model_type, {}))
        for kind, names in listed.items()
        for model_type in names.split()
    ]
    return {family.name: family for family in found}


FAMILIES = _families()
