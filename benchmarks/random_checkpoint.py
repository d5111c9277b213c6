"""Models of real shapes with random weights, written to disk without ever being in memory."""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

_INDEX = "model.safetensors.index.json"
_BLOCK = re.compile(r"^model\.layers\.\d+\.")
LLAMA_8B = transformers.LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192,
    rope_theta=500000.0, tie_word_embeddings=False, dtype="bfloat16",
)  # fmt: skip
QWEN_32B = transformers.Qwen2Config(
    vocab_size=152064, hidden_size=5120, intermediate_size=27648, num_hidden_layers=64,
    num_attention_heads=40, num_key_value_heads=8, max_position_embeddings=8192,
    rope_theta=1000000.0, tie_word_embeddings=False, dtype="bfloat16",
)  # fmt: skip
LLAMA_SMALL = transformers.LlamaConfig(
    vocab_size=16000, hidden_size=512, intermediate_size=1408, num_hidden_layers=16,
    num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=False, dtype="float32",
)  # fmt: skip


def write_checkpoint(
    folder: Path, config: transformers.PretrainedConfig, tell: Callable[[str], None]
) -> None:
    """Write a model with random weights, one shard for each block, unless it is there.

    Args:
        folder: Where to; what is there is kept if it was written for the same config.
        config: The model's config.
        tell: Called with how far it is.
    """
    if (folder / _INDEX).is_file():
        there = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if type(there) is type(config) and _shape(there) == _shape(config):
            return
        raise SystemExit(f"{folder} holds another model; name another --folder, or delete it")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    shards: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in model.state_dict().items():
        block = _BLOCK.match(name)
        shards[block[0] if block else name][name] = tensor
    needed = sum(t.nbytes for shard in shards.values() for t in shard.values())
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB left, the model needs {needed / 1e9:.1f}"
        )
    where = {}
    generator = torch.Generator().manual_seed(0)
    for number, shard in enumerate(shards.values(), 1):
        tell(f"writing {needed / 1e9:.1f} GB to {folder}: {number} of {len(shards)}")
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        drawn = {name: _draw(name, tensor, generator) for name, tensor in shard.items()}
        save_file(drawn, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(drawn, file)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    index = {"metadata": {"total_size": needed}, "weight_map": where}
    (folder / _INDEX).write_text(json.dumps(index))  # last: without it, nothing is there


def _shape(config: transformers.PretrainedConfig) -> list[int]:
    """What the sizes of the weights depend on."""
    return [
        config.vocab_size, config.hidden_size, config.intermediate_size,
        config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads,
    ]  # fmt: skip


def _draw(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if name.endswith("bias"):
        return torch.zeros(like.shape, dtype=like.dtype)
    if like.dim() == 1:
        return torch.ones(like.shape, dtype=like.dtype)
    return torch.empty(like.shape, dtype=like.dtype).normal_(0, 0.02, generator=generator)
