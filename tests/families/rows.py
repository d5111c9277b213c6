"""What every family is measured on: rows of very unequal length, as text and as tokens.

Short rows beside a long one have their padding cut and are run apart from it, which is where
a model shows that it reads padding, or counts positions in a way of its own.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from families.registry import N_CLASSES, TYPED, Family
from families.shrinking import BOS, EOS, PAD

LENGTHS = (150, 9, 7, 3, 60, 21, 5, 12)
ANSWER_LENGTHS = (4, 40, 2, 9, 3, 25, 11, 6)  # what a decoder of its own is to say
BATCH_SIZE = 4
# Characters have these ids; others mean something to some model, an image for instance.
FIRST_WORD, LAST_WORD = 10, 100
_SPECIAL = {"<unk>": 0, "<pad>": PAD, "<s>": BOS, "</s>": EOS}

Example = dict[str, Tensor]


def write_tokenizer(folder: Path) -> None:
    """One token for each character, and an end; no beginning.

    Byte pairs without a merge, which is what a class that brings a tokenizer of its own reads.
    """
    words = range(FIRST_WORD, LAST_WORD + 1)
    tokenizer = Tokenizer(BPE(_SPECIAL | {_character(n): n for n in words}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>",
        eos_token="</s>", model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip


def _character(token: int) -> str:
    return chr(token + ord("!") - FIRST_WORD)


def dataset(family: Family) -> list[dict[str, Any]]:
    """The rows of a job's dataset, one for each example of `examples`."""
    texts = ["".join(map(_character, words)) for words in _words(LENGTHS)]
    if family.kind == "classification":
        return [
            {"text": text, "label": label}
            for text, label in zip(texts, _classes(), strict=True)
        ]
    return [{"text": text} for text in texts]


def examples(family: Family) -> list[Example]:
    """The rows one by one, without padding, as a model takes them."""
    inputs = [torch.tensor([[*words, EOS]]) for words in _words(LENGTHS)]
    if family.kind == "classification":
        labels = [torch.tensor([label]) for label in _classes()]
    elif family.kind == "seq2seq_lm":
        labels = [torch.tensor([[*words, EOS]]) for words in _words(ANSWER_LENGTHS, seed=1)]
    else:
        labels = inputs
    masks = [torch.ones_like(ids) for ids in inputs]
    types = [{"token_type_ids": m} if family.model_type in TYPED else {} for m in masks]
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": wanted, **more}
        for ids, mask, wanted, more in zip(inputs, masks, labels, types, strict=True)
    ]


def batches(found: list[Example], *, size: int = BATCH_SIZE) -> list[Example]:
    """The examples in batches, padded on the right."""
    return [_padded(found[start : start + size]) for start in range(0, len(found), size)]


def padded_examples(found: list[Example]) -> list[Example]:
    """The examples one by one, each as wide as the longest."""
    (whole,) = batches(found, size=len(found))
    rows = range(len(found))
    return [{name: value[row : row + 1] for name, value in whole.items()} for row in rows]


def _padded(found: list[Example]) -> Example:
    fill = {"input_ids": PAD, "attention_mask": 0, "labels": -100, "token_type_ids": 0}
    batch = {}
    for name in found[0]:
        values = [example[name] for example in found]
        if values[0].dim() > 1:
            width = max(value.shape[1] for value in values)
            values = [
                torch.nn.functional.pad(v, (0, width - v.shape[1]), value=fill[name])
                for v in values
            ]
        batch[name] = torch.cat(values)
    return batch


def _words(lengths: tuple[int, ...], *, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(FIRST_WORD, LAST_WORD + 1, (n - 1,), generator=generator).tolist()
        for n in lengths
    ]


def _classes() -> list[int]:
    return [n % N_CLASSES for n in range(len(LENGTHS))]
