"""Tiny models of which text rows run a part only: vision towers, cross-attention, bare weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 61
_TEXT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "image_size": 8,
    "patch_size": 4,
}


@dataclass(frozen=True)
class PartlyRun:
    """A model, and an expression over the names of the modules that text does not reach."""

    build: Callable[[], nn.Module]
    unreached: str


def _model(class_name: str, config_name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        config = getattr(transformers, config_name)(**options)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, class_name)(config).eval()
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.2)
        return model

    return build


PARTLY_RUN = {
    "qwen2_vl": PartlyRun(
        _model(
            "Qwen2VLForConditionalGeneration",
            "Qwen2VLConfig",
            text_config=_TEXT
            | {
                "rope_parameters": {
                    "rope_type": "default",
                    "mrope_section": [1, 1, 1],
                    "rope_theta": 1e4,
                }
            },
            vision_config={
                "depth": 2,
                "embed_dim": 16,
                "hidden_size": 24,
                "num_heads": 2,
                "mlp_ratio": 2,
                "patch_size": 4,
            },
            image_token_id=5,
            video_token_id=6,
            vision_start_token_id=7,
            vision_end_token_id=8,
        ),
        r"model\.visual\..*",
    ),
    "gemma3": PartlyRun(
        _model(
            "Gemma3ForConditionalGeneration",
            "Gemma3Config",
            text_config=_TEXT | {"head_dim": 8, "sliding_window": 16},
            vision_config=_VISION,
            mm_tokens_per_image=4,
            image_token_index=5,
            boi_token_index=6,
            eoi_token_index=7,
        ),
        r"model\.vision_tower\..*",
    ),
    "llava": PartlyRun(
        _model(
            "LlavaForConditionalGeneration",
            "LlavaConfig",
            text_config=_TEXT | {"model_type": "llama"},
            vision_config=_VISION | {"model_type": "clip_vision_model", "projection_dim": 16},
            image_token_index=5,
        ),
        r"model\.(vision_tower|multi_modal_projector)\..*",
    ),
    "mllama": PartlyRun(
        _model(
            "MllamaForConditionalGeneration",
            "MllamaConfig",
            text_config=_TEXT
            | {
                "num_hidden_layers": 3,
                "cross_attention_layers": [1],
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            vision_config={
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 2,
                "intermediate_size": 20,
                "image_size": 8,
                "patch_size": 4,
                "vision_output_dim": 32,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1]],
            },
            image_token_index=5,
        ),
        r"model\.(vision_model\.|multi_modal_projector|language_model\.layers\.1\.).*",
    ),
    "llama4": PartlyRun(
        # Its router is a Linear that returns scores and logits; its experts are one parameter.
        _model(
            "Llama4ForCausalLM",
            "Llama4TextConfig",
            **_TEXT,
            head_dim=6,
            intermediate_size_mlp=40,
            num_local_experts=4,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
            attention_chunk_size=64,
        ),
        r".*\.(router|experts\..*)",
    ),
    "phimoe": PartlyRun(
        _model(
            "PhimoeForCausalLM",
            "PhimoeConfig",
            **_TEXT,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
        r".*\.(router|experts\..*)",
    ),
    "mamba": PartlyRun(
        _model(
            "MambaForCausalLM",
            "MambaConfig",
            hidden_size=24,
            num_hidden_layers=2,
            state_size=4,
            vocab_size=VOCABULARY,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        r".*\.dt_proj",
    ),
}


def text_batch(lengths: list[int], *, seed: int = 0) -> dict[str, Tensor]:
    """Token sequences without any that stands for an image, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(9, VOCABULARY, (length,), generator=generator)
        mask[row, :length] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
    }
