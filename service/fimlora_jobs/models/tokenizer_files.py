"""Whether a model's folder holds a tokenizer, and one whose ids its embedding has.

Added tokens that text never turns into (of images, say) may lie outside, and so may one that
pads; the tokens that every text gets, and the vocabulary as a whole, may not.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from fimlora_jobs.models.refusal import ModelRefused
from fimlora_jobs.models.tokenizer_content import (
    CONFIG,
    LEGACY,
    TOKENIZER,
    check_tokenizer_content,
)
from fimlora_jobs.models.weights_fit import Shapes, token_tables

FILES = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "source.spm", "tekken")
SUFFIXES = (".model", ".tiktoken", ".spm", ".bpe")
# Their tokens are characters or bytes, by code alone.
WITHOUT_FILES = frozenset({"canine", "perceiver"})
# Beyond this, it is the vocabulary of another model and not a few tokens that were added.
MOST_BEYOND = 1024
# What one takes while it is read, several hundred megabytes at most, is not taken several times.
_one_at_a_time = Lock()


@dataclass(frozen=True, slots=True)
class TokenizerIds:
    """The ids of a tokenizer that are certain to be used.

    Attributes:
        added_to_all: Tokens that every text gets, and their ids.
        largest: Of its vocabulary, without tokens that were added.
    """

    added_to_all: tuple[tuple[str, int], ...] = ()
    largest: int = 0


def check_tokenizer_names(names: Collection[str], config: Mapping[str, Any]) -> None:
    """Refuse a model without any file of a tokenizer.

    Raises:
        ModelRefused: There is none.
    """
    if config.get("model_type") in WITHOUT_FILES:
        return
    if not vocabularies_among(names):
        raise ModelRefused(
            "it has no tokenizer (no tokenizer.json, vocabulary or *.model); save one beside "
            "its weights"
        )


def vocabularies_among(names: Collection[str]) -> list[str]:
    """Names of the files that a vocabulary is in, as far as names tell."""
    return [name for name in names if name.startswith(FILES) or name.endswith(SUFFIXES)]


def files_looked_at(names: Collection[str]) -> list[str]:
    """Names of a model's files that `check_tokenizer` looks at."""
    whole = (TOKENIZER,) if TOKENIZER in names else vocabularies_among(names)
    return [name for name in (CONFIG, *LEGACY, *whole) if name in names]


def check_tokenizer(folder: Path, config: Mapping[str, Any], shapes: Shapes | None) -> None:
    """Refuse a tokenizer that is broken, or has ids outside the embedding, as its files tell.

    Args:
        folder: Where its files are.
        config: The model's ``config.json``.
        shapes: Shape of each weight by name; ``None`` where that is not known.

    Raises:
        ModelRefused: Names the file, the token or the size of the vocabulary.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()]
    ids = _read_ids(folder, tuple(_state(folder / name) for name in sorted(names)))
    rows = max((rows for _, rows, _ in token_tables(shapes or {})), default=None)
    rows = rows or config.get("vocab_size")
    if not isinstance(rows, int):
        return
    for token, number in ids.added_to_all:
        if number >= rows:
            raise ModelRefused(
                f"its tokenizer adds {token!r} to every text, whose id {number} lies outside "
                f"the embedding of {rows} rows"
            )
    if ids.largest >= rows + MOST_BEYOND:
        raise ModelRefused(
            f"its tokenizer belongs to another model: it has ids up to {ids.largest}, and the "
            f"embedding {rows} rows"
        )


def _state(file: Path) -> tuple[str, int, int, int, int]:
    state = file.stat()
    return file.name, state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns


@lru_cache(maxsize=64)
def _read_ids(folder: Path, files: tuple[tuple[str, int, int, int, int], ...]) -> TokenizerIds:
    # Read once as long as it is the same: it may have some hundred thousand lines.
    names = vocabularies_among([name for name, *_ in files])
    with _one_at_a_time:
        content = check_tokenizer_content(folder, [n for n in names if n != TOKENIZER])
        largest = max(_vocabulary(content), default=0)
        return TokenizerIds(tuple(_added_to_all(content.get("post_processor"))), largest)


def _vocabulary(content: Mapping[str, Any]) -> list[int]:
    """The ids of a vocabulary, without tokens that were added."""
    model = content.get("model")
    entries = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(entries, Mapping):
        return [n for n in entries.values() if isinstance(n, int)]
    # Tokens with their scores, in order.
    return list(range(len(entries))) if isinstance(entries, list) else []


def _added_to_all(processor: Any) -> Iterator[tuple[str, int]]:
    """Tokens that a post-processor adds to every text, and their ids."""
    if not isinstance(processor, Mapping):
        return
    inner = processor.get("processors")
    for part in inner if isinstance(inner, list) else ():
        yield from _added_to_all(part)
    for role in ("cls", "sep"):
        match processor.get(role):
            case [str(token), int(number)]:
                yield token, number
    known = processor.get("special_tokens")
    template = processor.get("single")
    for piece in template if isinstance(template, list) else ():
        match piece:
            case {"SpecialToken": {"id": str(token)}} if isinstance(known, Mapping):
                yield from ((token, number) for number in _ids_of(known.get(token)))


def _ids_of(entry: Any) -> list[int]:
    match entry:
        case {"ids": [*numbers]}:
            return [n for n in numbers if isinstance(n, int)]
    return []
