"""Checkpoints of real shapes whose weights take no room: headers, and files that are all hole.

Whatever goes by names and shapes alone takes them for the models they are called after.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LLAMA_405B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
    "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
    "num_attention_heads": 128, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128, "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}  # fmt: skip
TOKENIZER = {"model": {"vocab": {"[UNK]": 0, "w1": 1}}, "added_tokens": []}
INDEX = "model.safetensors.index.json"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """One file of weights.

    Attributes:
        name: Its name.
        head: What of it is not hole.
        n_bytes: Its size.
        tensors: Names of the tensors in it.
    """

    name: str
    head: bytes
    n_bytes: int
    tensors: tuple[str, ...]


def blocks_of(config: Mapping[str, Any]) -> Iterator[dict[str, Shape]]:
    """The weights as they are published: what is outside of blocks, then block by block."""
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    yield {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocabulary, width),
    }
    attention = _latent_attention if "kv_lora_rank" in config else _attention
    for layer in range(config["num_hidden_layers"]):
        inside = {**attention(config), **_mlps(config, layer)}
        inside |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        yield {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}


def shards_of(config: Mapping[str, Any]) -> Iterator[Shard]:
    """A file for each block, in bfloat16."""
    n = config["num_hidden_layers"] + 1
    for number, shapes in enumerate(blocks_of(config), 1):
        header: dict[str, Any] = {}
        end = 0
        for name, shape in shapes.items():
            start, end = end, end + 2 * _product(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        head = len(text).to_bytes(8, "little") + text
        name = f"model-{number:05}-of-{n:05}.safetensors"
        yield Shard(name, head, len(head) + end, tuple(shapes))


def write_hollow(folder: Path, config: Mapping[str, Any]) -> int:
    """Write the model; files keep their size and take up their headers alone.

    Returns:
        Bytes of all weights.
    """
    folder.mkdir(parents=True)
    where: dict[str, str] = {}
    total = 0
    for shard in shards_of(config):
        (folder / shard.name).write_bytes(shard.head)
        os.truncate(folder / shard.name, shard.n_bytes)
        where |= dict.fromkeys(shard.tensors, shard.name)
        total += shard.n_bytes - len(shard.head)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(dict(config)))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return total


def _attention(config: Mapping[str, Any]) -> dict[str, Shape]:
    width, size = config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    sides = {"q": (q, width), "k": (kv, width), "v": (kv, width), "o": (width, q)}
    return {f"self_attn.{name}_proj": shape for name, shape in sides.items()}


def _latent_attention(config: Mapping[str, Any]) -> dict[str, Shape]:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    rope, nope = config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    value = config["v_head_dim"]
    shapes: dict[str, Shape] = {
        "q_a_proj": (q_rank, width),
        "q_a_layernorm": (q_rank,),
        "q_b_proj": (heads * (rope + nope), q_rank),
        "kv_a_proj_with_mqa": (kv_rank + rope, width),
        "kv_a_layernorm": (kv_rank,),
        "kv_b_proj": (heads * (nope + value), kv_rank),
        "o_proj": (width, heads * value),
    }
    return {f"self_attn.{name}": shape for name, shape in shapes.items()}


def _mlps(config: Mapping[str, Any], layer: int) -> dict[str, Shape]:
    experts = config.get("n_routed_experts", 0)
    if not experts or layer < config["first_k_dense_replace"]:
        return _mlp("mlp", config["hidden_size"], config["intermediate_size"])
    width, inner = config["hidden_size"], config["moe_intermediate_size"]
    found: dict[str, Shape] = {"mlp.gate": (experts, width)}
    for expert in range(experts):
        found |= _mlp(f"mlp.experts.{expert}", width, inner)
    return found | _mlp("mlp.shared_experts", width, inner * config["n_shared_experts"])


def _mlp(prefix: str, width: int, inner: int) -> dict[str, Shape]:
    return {
        f"{prefix}.gate_proj": (inner, width),
        f"{prefix}.up_proj": (inner, width),
        f"{prefix}.down_proj": (width, inner),
    }


def _product(shape: Shape) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
