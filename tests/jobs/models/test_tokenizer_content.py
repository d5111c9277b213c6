"""A broken tokenizer is told from its files; the worker, which loads it, is the reference."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fimlora_jobs.models.refusal import ModelRefused
from fimlora_jobs.models.tokenizer_files import check_tokenizer
from fimlora_worker.errors import UnsupportedArchitecture
from fimlora_worker.inputs.models import load_tokenizer
from support.model_folders import make_tokenizer

Change = Callable[[dict[str, Any]], Any]
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tokenizer(eos_token="[EOS]").save_pretrained(tmp_path)
    return tmp_path


def is_refused(folder: Path) -> bool:
    try:
        check_tokenizer(folder, {}, None)
    except ModelRefused:
        return True
    return False


def cannot_be_loaded(folder: Path) -> bool:
    try:
        load_tokenizer(folder)
    except UnsupportedArchitecture:
        return True
    return False


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content", ["{", "", "[]", "null", '"a"', b"\xff\xfe", "{}", "[" * 9999]
)
def test_a_file_is_refused_if_the_worker_cannot_load_it(folder, name, content):
    """And passes if it can: an empty object is enough for all but the tokenizer itself."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    assert is_refused(folder) is cannot_be_loaded(folder)
    assert is_refused(folder) is (content != "{}" or name == "tokenizer.json")


CHANGES: dict[str, Change] = {
    "as it is": lambda c: None,
    "without a model": lambda c: c.pop("model"),
    "model null": lambda c: c.update(model=None),
    "without a vocabulary": lambda c: c["model"].pop("vocab"),
    "ids of text": lambda c: c["model"]["vocab"].update(w1="w1"),
    "an id below zero": lambda c: c["model"]["vocab"].update(w1=-1),
    "vocabulary null": lambda c: c["model"].update(vocab=None),
    "tokens without scores": lambda c: c.update(
        model={"type": "Unigram", "unk_id": 0, "vocab": ["a"]}
    ),
    "tokens with scores": lambda c: c.update(
        model={"type": "Unigram", "unk_id": 0, "vocab": [["[UNK]", 0], ["a", -1.5]]}
    ),
    "merges": lambda c: c.update(
        model={"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    ),
    "added tokens in an object": lambda c: c.update(added_tokens={}),
    "an added token without content": lambda c: c["added_tokens"][0].pop("content"),
    "an added token of text": lambda c: c["added_tokens"][0].update(id="x"),
    "without added tokens": lambda c: c.pop("added_tokens"),
    "without a version": lambda c: c.pop("version"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("lists_added", [False, True])
def test_a_tokenizer_is_refused_if_the_worker_cannot_load_it(folder, change, lists_added):
    """Whether its configuration lists the added tokens, as newer ones do, or not."""
    rewrite(folder / "tokenizer.json", CHANGES[change])
    if lists_added:
        rewrite(folder / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder={}))

    assert is_refused(folder) is cannot_be_loaded(folder)


def rewrite(file: Path, change: Change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_legacy_files_beside_a_list_of_added_tokens_are_not_read(folder):
    """Nobody reads them then: a broken one does no harm."""
    rewrite(folder / "tokenizer_config.json", lambda c: c.update(added_tokens_decoder={}))
    (folder / "added_tokens.json").write_text("{")
    (folder / "special_tokens_map.json").write_text("{")

    assert not cannot_be_loaded(folder)
    assert not is_refused(folder)


@pytest.mark.parametrize("longest", ["long", 0, -1, None, [64], 64, 1e30])
def test_the_longest_input_is_a_number_of_tokens(folder, longest):
    """As the worker reads it."""
    rewrite(folder / "tokenizer_config.json", lambda c: c.update(model_max_length=longest))

    assert is_refused(folder) is cannot_be_loaded(folder)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("vocab.txt", POINTER, "pointer of Git LFS"),
        ("tokenizer.model", POINTER, "pointer of Git LFS"),
        ("vocab.json", POINTER, "pointer of Git LFS"),
        ("vocab.json", "{", "is not JSON"),
        ("vocab.txt", "", "is empty"),
        ("spiece.model", "<html>", "no model of SentencePiece"),
        ("vocab.txt", "[PAD]\nw1\n", None),
        ("spiece.model", "\n\x0e\n\x05", None),
        ("tokenizer.model", "IQ== 0\n", None),
    ],
)
def test_vocabularies_of_their_own_format(tmp_path, name, content, named):
    """Looked at where no tokenizer.json stands for them; a pointer reads like a vocabulary."""
    (tmp_path / name).write_text(content)

    if named is None:
        check_tokenizer(tmp_path, {}, None)
    else:
        with pytest.raises(ModelRefused, match=named) as refusal:
            check_tokenizer(tmp_path, {}, None)
        assert name in str(refusal.value)


def test_vocabularies_beside_a_whole_tokenizer_are_left_alone(folder):
    """They are not read."""
    for name in ("vocab.json", "merges.txt", "spiece.model", "tokenizer.model"):
        (folder / name).write_text(POINTER)

    assert not cannot_be_loaded(folder)
    assert not is_refused(folder)


def test_a_pointer_of_a_tokenizer_is_called_one(folder):
    """As a clone without Git LFS leaves it."""
    (folder / "tokenizer.json").write_text(POINTER)

    with pytest.raises(
        ModelRefused, match=r"tokenizer.json is a pointer of Git LFS.*git lfs pull"
    ):
        check_tokenizer(folder, {}, None)
