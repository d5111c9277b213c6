"""Whether a model's folder holds a tokenizer, and one whose ids its embedding has.

Added tokens that text never turns into (of images, say) may lie outside, and so may one that
pads; the tokens that every text gets, and the vocabulary as a whole, may not.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from fimlora_jobs.models.refusal import ModelRefused
from fimlora_jobs.models.weights_fit import Shapes, token_tables

FILES = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "source.spm", "tekken")
SUFFIXES = (".model", ".tiktoken", ".spm", ".bpe")
# Their tokens are characters or bytes, by code alone.
WITHOUT_FILES = frozenset({"canine", "perceiver"})
MAX_BYTES = 128 << 20
# Beyond this, it is the vocabulary of another model and not a few tokens that were added.
MOST_BEYOND = 1024


def check_tokenizer_names(names: Collection[str], config: Mapping[str, Any]) -> None:
    """Refuse a model without any file of a tokenizer.

    Raises:
        ModelRefused: There is none.
    """
    if config.get("model_type") in WITHOUT_FILES:
        return
    if not any(name.startswith(FILES) or name.endswith(SUFFIXES) for name in names):
        raise ModelRefused(
            "it has no tokenizer (no tokenizer.json, vocabulary or *.model); save one beside "
            "its weights"
        )


def check_tokenizer_ids(folder: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse a tokenizer whose ids lie outside the embedding, as far as its files tell.

    Args:
        folder: The model's folder.
        config: Its ``config.json``.
        shapes: Shape of each weight by name.

    Raises:
        ModelRefused: Names the token or the size of the vocabulary.
    """
    rows = max((rows for _, rows, _ in token_tables(shapes)), default=None)
    rows = rows or config.get("vocab_size")
    content = _read(folder / "tokenizer.json")
    if not isinstance(rows, int) or not content:
        return
    for token, number in _added_to_all(content.get("post_processor")):
        if number >= rows:
            raise ModelRefused(
                f"its tokenizer adds {token!r} to every text, whose id {number} lies outside "
                f"the embedding of {rows} rows"
            )
    largest = max(_vocabulary(content), default=0)
    if largest >= rows + MOST_BEYOND:
        raise ModelRefused(
            f"its tokenizer belongs to another model: it has ids up to {largest}, and the "
            f"embedding {rows} rows"
        )


def _read(file: Path) -> Mapping[str, Any]:
    """An object in a file; empty where there is none, which shows when it is loaded."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            return {}
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}


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
