"""What is run: real shapes on a GPU, and small ones on a CPU by the same code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "rope_theta": 500000.0, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_32B = {
    "vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 27648,
    "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
    "rope_theta": 1000000.0, "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_30B_A3B = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
    "moe_intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
SMALL = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
SMALL_MIXTURE = SMALL | {
    "moe_intermediate_size": 32, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What one machine runs.

    Attributes:
        device: Where.
        dtype: What in.
        dense: Shape of the model that is resident.
        lengths: Examples and tokens of its batches.
        mixture: Shape of the mixture.
        mixture_length: Examples and tokens of its batches.
        streamed: Shape of the model that is streamed.
        streamed_batches: Batches, examples and tokens of its run.
        fit: Numbers of its blocks that are measured resident, to extend the time from.
        memory_gib: What the streamed run may have of the device's memory; ``None`` for all.
        repeats: Turns that count.
    """

    device: str
    dtype: torch.dtype
    dense: Mapping[str, Any]
    lengths: tuple[tuple[int, int], ...]
    mixture: Mapping[str, Any]
    mixture_length: tuple[int, int]
    streamed: Mapping[str, Any]
    streamed_batches: tuple[int, int, int]
    fit: tuple[int, int]
    memory_gib: float | None
    repeats: int


FORMS = {
    "gpu": Form(
        device="cuda",
        dtype=torch.bfloat16,
        dense=LLAMA_8B,
        lengths=((4, 512), (1, 4096)),
        mixture=QWEN_30B_A3B,
        mixture_length=(4, 512),
        streamed=QWEN_32B,
        streamed_batches=(8, 4, 512),
        fit=(2, 6),
        memory_gib=24,
        repeats=5,
    ),
    "cpu": Form(
        device="cpu",
        dtype=torch.float32,
        dense=SMALL,
        lengths=((4, 32), (1, 128)),
        mixture=SMALL_MIXTURE,
        mixture_length=(4, 32),
        streamed=SMALL,
        streamed_batches=(2, 2, 32),
        fit=(1, 3),
        memory_gib=None,
        repeats=3,
    ),
}  # fmt: skip


def dense_config(shape: Mapping[str, Any]) -> Any:
    """The config of the model that is resident."""
    return transformers.LlamaConfig(**shape)


def mixture_config(shape: Mapping[str, Any]) -> Any:
    """The config of the mixture."""
    return transformers.Qwen3MoeConfig(**shape)


def streamed_config(shape: Mapping[str, Any], n_blocks: int, dtype: torch.dtype) -> Any:
    """The config of so many blocks of the model that is streamed."""
    config = transformers.Qwen2Config(**{**shape, "num_hidden_layers": n_blocks})
    config.dtype = dtype
    return config


def build(config: Any, device: str, dtype: torch.dtype) -> nn.Module:
    """A decoder with random weights, made on the device itself."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: nn.Module = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype
            )
    finally:
        torch.set_default_dtype(torch.float32)
    return model.eval()
