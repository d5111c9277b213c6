"""Whether a model's folder holds a tokenizer, and one whose ids its embedding has.

Added tokens that text never turns into (of images, say) may lie outside; the tokens that every
text gets, and the vocabulary as a whole, may not.
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
USED_BY_ALL = ("pad_token", "bos_token", "eos_token", "cls_token", "sep_token")
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
    ids = dict(_ids(content))
    for role, token in _special(_read(folder / "tokenizer_config.json")):
        if ids.get(token, 0) >= rows:
            raise ModelRefused(
                f"the {role} {token!r} of its tokenizer has id {ids[token]}, outside its "
                f"embedding of {rows} rows"
            )
    largest = max((n for n in _vocabulary(content).values()), default=0)
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


def _vocabulary(content: Mapping[str, Any]) -> dict[str, int]:
    model = content.get("model")
    entries = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(entries, Mapping):
        return {token: n for token, n in entries.items() if isinstance(n, int)}
    if isinstance(entries, list):  # tokens with their scores, in order
        return {str(e[0]): n for n, e in enumerate(entries) if isinstance(e, list) and e}
    return {}


def _ids(content: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    yield from _vocabulary(content).items()
    added = content.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("id"), int):
            yield str(entry.get("content")), entry["id"]


def _special(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for role in USED_BY_ALL:
        token = config.get(role)
        token = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(token, str):
            yield role, token
