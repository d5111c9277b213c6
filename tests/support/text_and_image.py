"""Tiny models for text and images: the text model alone, and the whole, of one configuration."""

import transformers
from transformers import PreTrainedModel

_TEXT = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {"hidden_size": 16, "intermediate_size": 24}
_QWEN_TEXT = _TEXT | {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def qwen() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Its vision tower names no module as the text model does."""
    vision = _VISION | {"depth": 2, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen3_5Config(text_config=_QWEN_TEXT, vision_config=vision)
    return (
        transformers.Qwen3_5ForCausalLM(config.get_text_config()),
        transformers.Qwen3_5ForConditionalGeneration(config),
    )


def gemma() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Its vision tower has ``layers.0.self_attn.q_proj``, too."""
    vision = _VISION | {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=_TEXT, vision_config=vision)
    return (
        transformers.Gemma3ForCausalLM(config.get_text_config()),
        transformers.Gemma3ForConditionalGeneration(config),
    )
