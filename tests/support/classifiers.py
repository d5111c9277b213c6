"""Tiny classifiers of many families, saved as what people have: the base model alone."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from fimlora.model.loading import align

VOCABULARY, N_LABELS = 61, 3
_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 180, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "init_std": 0.2,
}  # fmt: skip
_T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
_XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
# By family: what its config takes besides.
FAMILIES: dict[str, dict[str, Any]] = {
    "Albert": {"embedding_size": 16},
    "Bart": _BART,
    "Bert": {},
    "Camembert": {},
    "Deberta": {"pooler_hidden_size": 32, "relative_attention": True, "pos_att_type": ["c2p"]},
    "DebertaV2": {"pooler_hidden_size": 32},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40},
    "Electra": {"embedding_size": 16},
    "EuroBert": {"num_key_value_heads": 2, "classifier_pooling": "late"},
    "Flaubert": _XLM,
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 180},
    "Gemma2": _GROUPED,
    "Llama": {},
    "Longformer": {"attention_window": 4},
    "MBart": _BART,
    "MPNet": {},
    "MT5": _T5,
    "MobileBert": {
        "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32,
    },
    "ModernBert": {"cls_token_id": 1, "sep_token_id": 2},
    "Qwen2": {"num_key_value_heads": 2},
    "Qwen3": _GROUPED,
    "Qwen3Next": {  # its mixers take random numbers when they are loaded
        **_GROUPED, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"],
    },
    "RoFormer": {},
    "Roberta": {},
    "T5": _T5,
    "XLM": {**_XLM, "n_langs": 1},
    "XLMRoberta": {},
}  # fmt: skip
TASK: Any = transformers.AutoModelForSequenceClassification


def save_base(family: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Save the base model; a BERT without its pooler, as masked language models have it."""
    config = getattr(transformers, f"{family}Config")(**_COMMON, **FAMILIES[family])
    config.num_labels = N_LABELS
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        base = TASK.from_config(config).base_model
    if family == "Bert":
        base = transformers.BertForMaskedLM(config).bert
    base.to(dtype).save_pretrained(folder, max_shard_size="20KB")


def config_of(folder: Path) -> Any:
    """The config of a classifier on it."""
    return transformers.AutoConfig.from_pretrained(folder, num_labels=N_LABELS)


def load_classifier(folder: Path, *, seed: int) -> Any:
    """What a person loads, with a head that this seed draws."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return align(TASK.from_pretrained(folder, num_labels=N_LABELS).eval())


def labelled_batch(family: str, lengths: list[int]) -> dict[str, Tensor]:
    """Random examples padded on the right, each with one end of text where it ends."""
    generator = torch.Generator().manual_seed(len(lengths))
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, VOCABULARY, (length,), generator=generator)
        ids[row, length - 1] = 2
    labels = torch.arange(len(lengths)) % N_LABELS
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
