"""Models whose tokenizer is a SentencePiece model alone, as older checkpoints have it."""

import io
import json

import pytest
import sentencepiece

from fimlora_worker.inputs.models import load_tokenizer

# Transformers reads such files with it, and blames tiktoken where it is not there.
pytest.importorskip("google.protobuf")
SENTENCES = ["the quick brown fox jumps over the lazy dog", "I really liked this film"] * 40


def trained(**options) -> bytes:
    """A SentencePiece model of a few tokens."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=written,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return written.getvalue()


@pytest.mark.parametrize(
    ("kind", "file", "options"),
    [
        (
            {"model_type": "llama", "tokenizer_class": "LlamaTokenizer"},
            "tokenizer.model",
            {"model_type": "bpe", "byte_fallback": True, "vocab_size": 320, "pad_id": -1},
        ),
        (
            {"model_type": "t5", "tokenizer_class": "T5Tokenizer"},
            "spiece.model",
            {"vocab_size": 50, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        ),
    ],
    ids=["llama", "t5"],
)
def test_a_sentencepiece_model_is_tokenizer_enough(tmp_path, kind, file, options):
    """Its own library gives the same ids."""
    model = trained(**options)
    (tmp_path / file).write_bytes(model)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind["model_type"]}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": kind["tokenizer_class"]})
    )
    own = sentencepiece.SentencePieceProcessor(model_proto=model)

    tokenizer = load_tokenizer(tmp_path)

    found = tokenizer("the lazy film", add_special_tokens=False)["input_ids"]
    assert found == own.encode("the lazy film")
