"""Tiny encoder-decoders with random weights, and batches for them."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from support.models import N_CLASSES, PAD, VOCABULARY

_T5 = {
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
}
_BART = {
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 32,
    "num_labels": N_CLASSES,
}


def _model(class_name: str, config_name: str, **options: Any) -> Callable[..., nn.Module]:
    def build(vocabulary: int = VOCABULARY) -> nn.Module:
        config = getattr(transformers, config_name)(
            vocab_size=vocabulary, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=PAD, **options,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, class_name)(config).eval()
            for parameter in model.parameters():
                if parameter.dim() > 1:  # so that no gradient is ruled by rounding
                    nn.init.normal_(parameter, std=0.2)
        return model

    return build


SEQ2SEQ_MODELS = {
    "t5": _model("T5ForConditionalGeneration", "T5Config", **_T5),  # tied, shared positions
    "t5_gated_untied": _model(
        "T5ForConditionalGeneration", "T5Config", **_T5,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    ),
    "bart": _model("BartForConditionalGeneration", "BartConfig", **_BART),
    "bart_classifier": _model("BartForSequenceClassification", "BartConfig", **_BART),
}  # fmt: skip


def make_seq2seq_batch(
    name: str, lengths: list[int], wanted: list[int], *, seed: int = 0
) -> dict[str, Tensor]:
    """Random sequences of these lengths, and labels: sequences of other lengths, or classes."""
    generator = torch.Generator().manual_seed(seed)

    def sequences(lengths: list[int], filling: int) -> Tensor:
        ids = torch.full((len(lengths), max(lengths)), filling)
        for row, length in enumerate(lengths):
            ids[row, :length] = torch.randint(3, VOCABULARY, (length,), generator=generator)
            ids[row, length - 1] = 2  # the end, which a classifier looks at
        return ids

    ids = sequences(lengths, PAD)
    labels = sequences(wanted, -100)
    if "classifier" in name:
        labels = torch.randint(0, N_CLASSES, (len(lengths),), generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}
