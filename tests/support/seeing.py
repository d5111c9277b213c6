"""Tiny models that see or hear, on disk with their processors, and images and sounds for them."""

import base64
import io
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AddedToken, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "max_position_embeddings": 512,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
}  # fmt: skip
PARTS = (
    "{{% for m in messages %}}<{{{{ m['role'] }}}}>{{% if m['content'] is string %}}"
    "{{{{ m['content'] }}}}{{% else %}}{{% for p in m['content'] %}}"
    "{{% if p['type'] == 'image' %}}{image}{{% elif p['type'] == 'audio' %}}{audio}"
    "{{% else %}}{{{{ p['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}</s>{{% endfor %}}"
    "{{% if add_generation_prompt %}}<assistant>{{% endif %}}"
)


def template(image: str = "", audio: str = "") -> str:
    """A chat template that knows parts of content."""
    return PARTS.format(image=image, audio=audio)


def byte_tokenizer(*added: str, **named: str) -> PreTrainedTokenizerFast:
    """One token for each byte, and some that stand for more."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*SPECIAL, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", extra_special_tokens=named, model_max_length=512,
    )  # fmt: skip
    tokenizer.add_tokens([AddedToken(t, special=True) for t in added], special_tokens=True)
    return tokenizer


def save(model: nn.Module, processor: Any, folder: Path, **saving: Any) -> Path:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.Conv1d):
            nn.init.normal_(module.weight, std=0.2)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    model.save_pretrained(folder, **saving)
    processor.save_pretrained(folder)
    return folder


def make_llava(folder: Path, **saving: Any) -> Path:
    """Five places for each image of 28 x 28, less the one of the class."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    tokenizer = byte_tokenizer("<image>")
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=16),
        text_config=transformers.LlamaConfig(**TEXT, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=template("<image>\n"),
    )
    return save(transformers.LlavaForConditionalGeneration(config), processor, folder, **saving)


QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_SIZES = {"shortest_edge": 14 * 14, "longest_edge": 56 * 56}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
QWEN_VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48,
    "patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2,
    "out_hidden_size": 32, "window_size": 28, "fullatt_block_indexes": [1],
}  # fmt: skip


def _save_qwen(folder: Path, tokenizer: Any, model: nn.Module, **saving: Any) -> Path:
    """Without a reader of videos, which would need torchvision."""
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as images

    reader = images.Qwen2VLImageProcessorPil(patch_size=7, merge_size=2, size=QWEN_SIZES)
    reader.save_pretrained(folder)
    tokenizer.chat_template = template("<|vision_start|><|image_pad|><|vision_end|>")
    return save(model, tokenizer, folder, **saving)


def make_qwen_vl(folder: Path, **saving: Any) -> Path:
    """Patches of all images on one axis, positions of three rows; images of any size."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(*QWEN)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(QWEN))
    config = transformers.Qwen2_5_VLConfig(
        vision_config=QWEN_VISION,
        text_config=TEXT | {"vocab_size": len(tokenizer), "rope_parameters": MROPE},
        image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end,
    )  # fmt: skip
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return _save_qwen(folder, tokenizer, model, **saving)


def make_qwen2_vl(folder: Path, **saving: Any) -> Path:
    """The generation before, whose tower attends to all patches."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(*QWEN)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(QWEN))
    config = transformers.Qwen2VLConfig(
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2,
            "patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        text_config=TEXT | {"vocab_size": len(tokenizer), "rope_parameters": MROPE},
        image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end,
    )  # fmt: skip
    model = transformers.Qwen2VLForConditionalGeneration(config)
    return _save_qwen(folder, tokenizer, model, **saving)


def make_gemma3(folder: Path, **saving: Any) -> Path:
    """Four places for each image, between words of its own."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    torch.manual_seed(0)
    named = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<img>"}
    tokenizer = byte_tokenizer(**named)
    boi, eoi, image = tokenizer.convert_tokens_to_ids(list(named.values()))
    config = transformers.Gemma3Config(
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=TEXT | {"vocab_size": len(tokenizer)},
        mm_tokens_per_image=4, boi_token_index=boi, eoi_token_index=eoi, image_token_index=image,
    )  # fmt: skip
    processor = transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer,
        image_seq_length=4,
        chat_template=template("<boi>"),
    )
    return save(
        transformers.Gemma3ForConditionalGeneration(config), processor, folder, **saving
    )


def make_idefics3(folder: Path, **saving: Any) -> Path:
    """Cuts an image into tiles, each of which has its places."""
    from transformers.models.idefics3 import image_processing_pil_idefics3 as images

    torch.manual_seed(0)
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    tokenizer = byte_tokenizer("<fake_token_around_image>", "<global-img>", *tiles)
    processor = transformers.Idefics3Processor(
        images.Idefics3ImageProcessorPil(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
        ),
        tokenizer,
        image_seq_len=1,
        chat_template=template("<image>"),
    )
    tokenizer = processor.tokenizer
    config = transformers.Idefics3Config(
        vision_config=VISION,
        text_config=transformers.LlamaConfig(**TEXT, vocab_size=len(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    return save(
        transformers.Idefics3ForConditionalGeneration(config), processor, folder, **saving
    )


def make_paligemma(folder: Path, **saving: Any) -> Path:
    """Its processor writes a beginning before the text, and the end of a line behind it."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    torch.manual_seed(0)
    reader = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    reader.image_seq_length = 4
    processor = transformers.PaliGemmaProcessor(
        reader, byte_tokenizer(), chat_template=template("<image>")
    )
    tokenizer = processor.tokenizer
    config = transformers.PaliGemmaConfig(
        vision_config=VISION | {
            "model_type": "siglip_vision_model", "vision_use_head": False, "projection_dim": 32,
        },
        text_config=TEXT | {"model_type": "gemma", "vocab_size": len(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), projection_dim=32,
    )  # fmt: skip
    return save(
        transformers.PaliGemmaForConditionalGeneration(config), processor, folder, **saving
    )


def make_qwen_audio(folder: Path, **saving: Any) -> Path:
    """Listens for a second at most, at 16,000 samples."""
    torch.manual_seed(0)
    named = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    tokenizer = byte_tokenizer(*named)
    config = transformers.Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": 16, "d_model": 32, "encoder_layers": 2,
            "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "max_source_positions": 50,
        },
        text_config=transformers.Qwen2Config(
            **{k: v for k, v in TEXT.items() if k != "head_dim"}, vocab_size=len(tokenizer)
        ),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    processor = transformers.Qwen2AudioProcessor(
        transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1),
        tokenizer,
        chat_template=template(audio="<|audio_bos|><|AUDIO|><|audio_eos|>"),
    )
    return save(
        transformers.Qwen2AudioForConditionalGeneration(config), processor, folder, **saving
    )


MAKERS = {
    "llava": make_llava, "qwen_vl": make_qwen_vl, "qwen2_vl": make_qwen2_vl, "gemma3": make_gemma3,
    "idefics3": make_idefics3, "paligemma": make_paligemma, "qwen_audio": make_qwen_audio,
}  # fmt: skip


def pixels(seed: int, width: int = 28, height: int = 28) -> "np.ndarray[Any, Any]":
    """Colours at random."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)


def png(colours: "np.ndarray[Any, Any]") -> bytes:
    """An image as a PNG file."""
    height, width, _ = colours.shape
    lines = b"".join(b"\0" + line.tobytes() for line in colours)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def wav(seed: int, *, n_samples: int = 8_000, rate: int = 16_000, channels: int = 1) -> bytes:
    """Noise as a WAV file of 16 bits."""
    noise = np.random.RandomState(seed).randint(-9_000, 9_000, n_samples * channels)
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(noise.astype("<i2").tobytes())
    return held.getvalue()


def data_url(content: bytes, kind: str = "image/png") -> str:
    """Bytes as text of JSON has them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
