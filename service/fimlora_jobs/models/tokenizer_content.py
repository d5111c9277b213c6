"""Whether the files of a tokenizer hold what a tokenizer can be made of.

Told from each file by itself; what only shows as the tokenizer is built is the worker's to say.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fimlora_jobs.json_values import TooManyValues, check_values
from fimlora_jobs.models.refusal import ModelRefused

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
# Are read only where the configuration does not list the tokens that were added.
LEGACY = ("special_tokens_map.json", "added_tokens.json")
MAX_BYTES = 64 << 20
# A million tokens with their scores are three million values.
MAX_VALUES = 8_000_000
POINTER = b"version https://git-lfs"
# How files of SentencePiece's own format are called, and the bytes that may begin one.
PIECES = frozenset({
    "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "source.spm",
    "target.spm", "spm.model",
})  # fmt: skip
PIECE_STARTS = frozenset(b"\x0a\x12\x1a\x22\x2a")
SAVE_ANEW = "save the tokenizer anew, or fetch the file again"


def check_tokenizer_content(folder: Path, vocabularies: Collection[str]) -> Mapping[str, Any]:
    """Refuse files that no tokenizer can be made of.

    Args:
        folder: The model's folder.
        vocabularies: Names of its files that hold a vocabulary.

    Returns:
        The content of its ``tokenizer.json``; empty where there is none, or one too large to be
        looked at.

    Raises:
        ModelRefused: Names the file and what is wrong with it.
    """
    config = read_object(folder / CONFIG)
    longest = config.get("model_max_length")
    if longest is not None and not (isinstance(longest, int | float) and longest > 0):
        raise ModelRefused(
            f"its {CONFIG} has model_max_length={str(longest)[:40]!r}; allowed is a number of tokens"
        )
    is_legacy = "added_tokens_decoder" not in config
    for name in LEGACY if is_legacy else ():
        read_object(folder / name)
    _check_text(folder / TEMPLATE)
    if (folder / TOKENIZER).is_file():
        content = read_object(folder / TOKENIZER)
        if content or (folder / TOKENIZER).stat().st_size <= MAX_BYTES:
            _check_tokenizer(content, is_legacy=is_legacy)
        return content
    for name in sorted(vocabularies):
        _check_vocabulary(folder / name)
    return {}


def read_object(file: Path) -> Mapping[str, Any]:
    """The object in a file; empty where there is no file, or one too large to be looked at.

    Raises:
        ModelRefused: It holds something else.
    """
    if not file.is_file() or file.stat().st_size > MAX_BYTES:
        return {}
    data = file.read_bytes()
    _check_no_pointer(file.name, data)
    try:
        check_values(data, most=MAX_VALUES)
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise _broken(file.name, f"is not JSON ({_place(error)})") from error
    if not isinstance(content, Mapping):
        raise _broken(file.name, "does not hold an object")
    return content


def _check_tokenizer(content: Mapping[str, Any], *, is_legacy: bool) -> None:
    model = content.get("model")
    if not isinstance(model, Mapping):
        raise _broken(TOKENIZER, "has no model, which is an object with a vocabulary")
    vocabulary = model.get("vocab")
    if not _is_vocabulary(vocabulary):
        raise _broken(
            TOKENIZER,
            "has no model.vocab that is one: an object of ids from 0, or a list of tokens with "
            "their scores",
        )
    added = content.get("added_tokens", None if is_legacy else [])
    if not isinstance(added, list) or not all(map(_is_token, added)):
        raise _broken(
            TOKENIZER, "has no added_tokens that are a list of objects with id and content"
        )


def _check_text(file: Path) -> None:
    if not file.is_file() or file.stat().st_size > MAX_BYTES:
        return
    try:
        file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ModelRefused(f"its {file.name} is not UTF-8 at byte {error.start}") from error


def _is_vocabulary(entries: Any) -> bool:
    if isinstance(entries, Mapping):
        return all(type(number) is int and number >= 0 for number in entries.values())
    return isinstance(entries, list) and all(map(_is_scored, entries))


def _is_scored(entry: Any) -> bool:
    match entry:
        case [str(), int() | float()]:
            return True
    return False


def _is_token(entry: Any) -> bool:
    match entry:
        case {"id": int(number), "content": str()}:
            return number >= 0
    return False


def _check_vocabulary(file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(len(POINTER))
    _check_no_pointer(file.name, start)
    if not start:
        raise _broken(file.name, "is empty")
    if file.name in PIECES and start[0] not in PIECE_STARTS:
        raise _broken(file.name, "is no model of SentencePiece")
    if file.name == "vocab.json":
        read_object(file)


def _check_no_pointer(name: str, data: bytes) -> None:
    if data.startswith(POINTER):
        raise ModelRefused(
            f"its {name} is a pointer of Git LFS instead of the file; fetch it (git lfs pull)"
        )


def _broken(name: str, what: str) -> ModelRefused:
    return ModelRefused(f"its {name} {what}; {SAVE_ANEW}")


def _place(error: Exception) -> str:
    match error:
        case json.JSONDecodeError():
            return f"{error.msg} in line {error.lineno}"
        case UnicodeDecodeError():
            return f"not UTF-8 at byte {error.start}"
        case RecursionError():
            return "nested too deeply"
        case TooManyValues():
            return str(error)
    return "a number is too long"
