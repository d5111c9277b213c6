"""More tiny models that see or hear: those that cut images into tiles, and later generations."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from support.seeing import (
    MROPE,
    QWEN,
    QWEN_SIZES,
    QWEN_VISION,
    TEXT,
    VISION,
    byte_tokenizer,
    save,
    template,
)

SIGLIP = VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}
PINPOINTS = [[28, 56], [56, 28], [56, 56]]


def _save_parts(
    folder: Path,
    model: nn.Module,
    tokenizer: Any,
    reader: Any,
    facts: dict[str, Any],
    **saving: Any,
) -> Path:
    """Without a reader of videos, which would need torchvision."""
    reader.save_pretrained(folder)
    save(model, tokenizer, folder, **saving)
    (folder / "processor_config.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def make_qwen3_vl(folder: Path, **saving: Any) -> Path:
    """What the tower has seen in between goes into the first blocks of the language model, too."""
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as images

    torch.manual_seed(0)
    tokenizer = byte_tokenizer(*QWEN)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(QWEN))
    config = transformers.Qwen3VLConfig(
        vision_config=QWEN_VISION | {
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
        },
        text_config=TEXT | {"vocab_size": len(tokenizer), "rope_parameters": MROPE},
        image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end,
    )  # fmt: skip
    tokenizer.chat_template = template("<|vision_start|><|image_pad|><|vision_end|>")
    reader = images.Qwen2VLImageProcessorPil(patch_size=7, merge_size=2, size=QWEN_SIZES)
    return _save_parts(
        folder, transformers.Qwen3VLForConditionalGeneration(config), tokenizer, reader,
        {"processor_class": "Qwen3VLProcessor"}, **saving,
    )  # fmt: skip


def make_llava_next(folder: Path, **saving: Any) -> Path:
    """The whole image and its tiles, each row of which ends in a place of its own."""
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    torch.manual_seed(0)
    tokenizer = byte_tokenizer("<image>")
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=16),
        text_config=transformers.LlamaConfig(**TEXT, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS, image_seq_length=4,
    )  # fmt: skip
    processor = transformers.LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template("<image>\n"),
    )  # fmt: skip
    return save(
        transformers.LlavaNextForConditionalGeneration(config), processor, folder, **saving
    )


def make_llava_onevision(folder: Path, **saving: Any) -> Path:
    """Tiles of one image, and whole images where a row has several."""
    from transformers.models.llava_onevision import (
        image_processing_pil_llava_onevision as images,
    )

    torch.manual_seed(0)
    tokenizer = byte_tokenizer("<image>", "<video>")
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    config = transformers.LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config=transformers.Qwen2Config(**TEXT, vocab_size=len(tokenizer)),
        image_token_id=image, video_token_id=video, image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
    )  # fmt: skip
    tokenizer.chat_template = template("<image>\n")
    reader = images.LlavaOnevisionImageProcessorPil(
        size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS
    )
    facts = {
        "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 4,
        "vision_feature_select_strategy": "full",
    }  # fmt: skip
    model = transformers.LlavaOnevisionForConditionalGeneration(config)
    return _save_parts(folder, model, tokenizer, reader, facts, **saving)


def make_internvl(folder: Path, **saving: Any) -> Path:
    """Tiles of 28 x 28, one place for each."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
        GotOcr2ImageProcessorPil,
    )

    torch.manual_seed(0)
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
    }  # fmt: skip
    tokenizer = byte_tokenizer(**named)
    config = transformers.InternVLConfig(
        vision_config={
            **VISION, "image_size": [28, 28], "patch_size": [14, 14], "model_type": "internvl_vision",
        },
        text_config=transformers.Qwen2Config(**TEXT, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1, downsample_ratio=0.5,
    )  # fmt: skip
    tokenizer.chat_template = template("<IMG_CONTEXT>\n")
    reader = GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4
    )
    facts = {"processor_class": "InternVLProcessor", "image_seq_length": 1}
    model = transformers.InternVLForConditionalGeneration(config)
    return _save_parts(folder, model, tokenizer, reader, facts, **saving)


def make_aya_vision(folder: Path, **saving: Any) -> Path:
    """Tiles named in the text, before those that stand for them."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
        GotOcr2ImageProcessorPil,
    )

    torch.manual_seed(0)
    added = (
        "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>",
        "TILE_GLOBAL", *(f"TILE_{n}" for n in range(1, 13)),
    )  # fmt: skip
    tokenizer = byte_tokenizer(*added)
    config = transformers.AyaVisionConfig(
        vision_config=SIGLIP,
        text_config=TEXT | {
            "model_type": "cohere2", "vocab_size": len(tokenizer),
            "layer_types": ["sliding_attention", "full_attention"],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"), downsample_factor=2,
        vision_feature_layer=-1, adapter_layer_norm_eps=1e-6,
    )  # fmt: skip
    processor = transformers.AyaVisionProcessor(
        GotOcr2ImageProcessorPil(
            size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4
        ),
        tokenizer, patch_size=14, img_size=28, downsample_factor=2,
        chat_template=template("<image>"),
    )  # fmt: skip
    return save(
        transformers.AyaVisionForConditionalGeneration(config), processor, folder, **saving
    )


def make_idefics2(folder: Path, **saving: Any) -> Path:
    """As many places for an image of any size, between two that say where it is."""
    from transformers.models.idefics2 import image_processing_pil_idefics2 as images

    torch.manual_seed(0)
    processor = transformers.Idefics2Processor(
        images.Idefics2ImageProcessorPil(
            size={"longest_edge": 28, "shortest_edge": 14}, do_image_splitting=False
        ),
        byte_tokenizer(), image_seq_len=3, chat_template=template("<image>"),
    )  # fmt: skip
    tokenizer = processor.tokenizer
    config = transformers.Idefics2Config(
        vision_config=VISION,
        perceiver_config={
            "hidden_size": 32, "resampler_n_latents": 3, "resampler_depth": 1,
            "resampler_n_heads": 4, "resampler_head_dim": 8, "num_key_value_heads": 2,
        },
        text_config=transformers.MistralConfig(**TEXT, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=0,
    )  # fmt: skip
    return save(
        transformers.Idefics2ForConditionalGeneration(config), processor, folder, **saving
    )


def make_glmasr(folder: Path, **saving: Any) -> Path:
    """Hears windows of two seconds, of which four steps become one place."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer("<|audio|>")
    config = transformers.GlmAsrConfig(
        audio_config={
            "num_mel_bins": 16, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 128,
            "head_dim": 8, "max_position_embeddings": 100,
        },
        text_config=transformers.LlamaConfig(**TEXT, vocab_size=len(tokenizer)),
        audio_token_id=tokenizer.convert_tokens_to_ids("<|audio|>"),
    )  # fmt: skip
    processor = transformers.GlmAsrProcessor(
        transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2),
        tokenizer, audio_token="<|audio|>", chat_template=template(audio="<|audio|>"),
    )  # fmt: skip
    return save(
        transformers.GlmAsrForConditionalGeneration(config), processor, folder, **saving
    )


MORE = {
    "qwen3_vl": make_qwen3_vl, "llava_next": make_llava_next,
    "llava_onevision": make_llava_onevision, "internvl": make_internvl,
    "aya_vision": make_aya_vision, "idefics2": make_idefics2, "glmasr": make_glmasr,
}  # fmt: skip
