"""Which heads transformers has for a type of model, from a table that ships with this package.

The service must say so without transformers. ``docs/generate.py`` makes the table and a test
holds it against the installed version. A type that is not in the table passes: the worker's
transformers may be newer, and a wrong refusal here would leave no way out.
"""

import json
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fimlora_jobs.models.refusal import ModelRefused

TABLE = "heads.json"
CAUSAL, CLASSIFIES, MASKED = "causal_lm", "sequence_classification", "masked_lm"
SEQ2SEQ, MULTIMODAL = "seq2seq_lm", "multimodal_lm"


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Whether a model writes what another part of it has not read: T5, BART and their like.

    Some families may also be their decoder alone, by a switch in their configuration.
    """
    heads = known_heads().get(str(config.get("model_type")), frozenset())
    return SEQ2SEQ in heads and bool(config.get("is_encoder_decoder", True))


def check_rows(config: Mapping[str, Any], *, has_completion: bool, is_chat: bool) -> None:
    """Refuse rows of text that an encoder-decoder cannot learn from.

    Args:
        config: The content of a ``config.json``.
        has_completion: Whether a row has what is to be written apart from what is read.
        is_chat: Whether it goes through a chat template.

    Raises:
        ModelRefused: Says which rows it needs.
    """
    if is_encoder_decoder(config) and (is_chat or not has_completion):
        found = "chat messages" if is_chat else "text without a completion"
        raise ModelRefused(
            f"{config.get('model_type')} is an encoder-decoder, and the rows are {found}; it "
            "needs rows with prompt and completion (or instruction and output) as text: it reads "
            "the one and writes the other"
        )


def check_media(config: Mapping[str, Any], media: Collection[str]) -> None:
    """Refuse a type of model that neither sees nor hears.

    Args:
        config: The content of a ``config.json``.
        media: Kinds of what the rows show besides text.

    Raises:
        ModelRefused: It does not, and the message says what to do.
    """
    kind = config.get("model_type")
    heads = known_heads().get(str(kind))
    if heads is None or MULTIMODAL in heads:
        return
    raise ModelRefused(
        f"the rows have {' and '.join(media)}, and transformers has no class of {kind} that reads "
        "these beside text and writes text; give a model that sees or hears, or leave their column "
        "alone by an empty name (--column images=, --column audio=)"
    )


def check_head(config: Mapping[str, Any], task: str) -> None:
    """Refuse a type of model that has no head for a task.

    Args:
        config: The content of a ``config.json``.
        task: ``causal_lm`` or ``sequence_classification``; an encoder-decoder models language,
            too.

    Raises:
        ModelRefused: It has none, and the message says what it has.
    """
    kind = config.get("model_type")
    heads = known_heads().get(str(kind))
    if heads is None:
        return
    if task == CAUSAL and is_encoder_decoder(config):
        return
    if task == CLASSIFIES and CLASSIFIES not in heads:
        other = "; give a dataset without labels" if heads & {CAUSAL, SEQ2SEQ} else ""
        raise ModelRefused(
            f"transformers has no sequence classification head for {kind}{other}"
        )
    # The same class is both, by a switch in its configuration.
    reads_both_ways = MASKED in heads and not config.get("is_decoder")
    if task == CAUSAL and (CAUSAL not in heads or reads_both_ways):
        other = (
            "; give a dataset with labels to calibrate it for sequence classification"
            if CLASSIFIES in heads
            else ""
        )
        if MULTIMODAL in heads:
            other = "; give rows with images or sounds for all of it to be run"
        raise ModelRefused(f"{kind} is no causal language model{other}")


def check_native(config: Mapping[str, Any]) -> None:
    """Refuse a model that only code of its own can run; one that transformers has runs natively.

    Args:
        config: The content of a ``config.json``.

    Raises:
        ModelRefused: Transformers has no such type.
    """
    kind = config.get("model_type")
    if config.get("auto_map") and kind not in known_heads():
        raise ModelRefused(
            f"it brings code of its own (auto_map in config.json), which is never run, and "
            f"transformers has no model type {kind!r}; give a model of a type that it has"
        )


@cache
def known_heads() -> Mapping[str, frozenset[str]]:
    """Heads by type of model."""
    table = json.loads((files(__package__) / TABLE).read_text(encoding="utf-8"))
    return {kind: frozenset(heads) for kind, heads in table["heads"].items()}
