"""Whether a checkpoint's weights can be those that its configuration describes.

Only what is certain is refused: a difference that some family has for a reason is left to the
worker, which knows the family.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fimlora_jobs.models.config_numbers import WIDTHS
from fimlora_jobs.models.config_parts import parts_of, text_parts
from fimlora_jobs.models.layer_counts import check_layers
from fimlora_jobs.models.refusal import ModelRefused

Shapes = Mapping[str, tuple[int, ...]]
TOKEN_TABLES = frozenset({
    "embed_tokens", "embed_in", "word_embeddings", "tok_embeddings", "token_embedding", "wte",
})  # fmt: skip
COUNT_OF_TOKENS = re.compile(r"vocab|n_words")
OTHER_TABLES = {
    **dict.fromkeys(("position_embeddings", "embed_positions", "wpe"), re.compile("position")),
    "token_type_embeddings": re.compile("type_vocab_size"),
}
# Rows that a family adds to its vocabulary, or pads it with.
EXTRA_ROWS = 4096
SIDE = re.compile(r"(size|dim|rank|channels)$")
NO_SIDE = re.compile(r"window|chunk|cache|block|batch|vocab")
MOST_UNSEEN = 1 << 16  # what no weight shows, such as the size of an image, is shorter


def check_weights_fit(config: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse weights of another model than the configuration's.

    Args:
        config: The content of a ``config.json``.
        shapes: Shape of each weight by name.

    Raises:
        ModelRefused: Names the weight and the field.
    """
    for name, rows, width in token_tables(shapes):
        _check_rows(config, name, rows)
        _check_width(config, name, width)
    _check_other_tables(config, shapes)
    _check_sides(config, shapes)
    check_layers(config, shapes)


def token_tables(shapes: Shapes) -> Iterator[tuple[str, int, int]]:
    """Name, rows and width of each embedding of tokens."""
    for name, shape in shapes.items():
        owner = name.removesuffix(".weight")
        if len(shape) == 2 and owner.rpartition(".")[2] in TOKEN_TABLES and owner != name:
            yield name, shape[0], shape[1]


def _check_rows(config: Mapping[str, Any], name: str, rows: int) -> None:
    counts = [
        value
        for part in parts_of(config)
        for key, value in part.items()
        if COUNT_OF_TOKENS.search(key) and isinstance(value, int)
    ]
    if counts and not any(count <= rows <= count + EXTRA_ROWS for count in counts):
        raise ModelRefused(
            f"its weights belong to another config.json: {name} has {rows} rows, and "
            f"vocab_size is {max(counts)}"
        )


def _check_other_tables(config: Mapping[str, Any], shapes: Shapes) -> None:
    """Positions and types of tokens, in families without parts: towers have tables of their own."""
    if any(key.endswith("_config") and isinstance(config[key], Mapping) for key in config):
        return
    for name, shape in shapes.items():
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        counted = OTHER_TABLES.get(leaf)
        if counted is None or len(shape) != 2 or not name.endswith(".weight"):
            continue
        counts = {
            key: value
            for key, value in config.items()
            if counted.search(key) and isinstance(value, int) and value
        }
        if counts and not any(n <= shape[0] <= n + EXTRA_ROWS for n in counts.values()):
            stated = ", ".join(f"{key}={value}" for key, value in counts.items())
            raise ModelRefused(
                f"its weights belong to another config.json, which has {stated}: {name} has "
                f"{shape[0]} rows"
            )


def _check_sides(config: Mapping[str, Any], shapes: Shapes) -> None:
    """A width that no weight comes near would fill memory with what is made from it."""
    most = max([MOST_UNSEEN, *(side for shape in shapes.values() for side in shape)])
    for part in parts_of(config):
        for key, value in part.items():
            is_side = SIDE.search(key) and not NO_SIDE.search(key)
            if is_side and isinstance(value, int) and value > most:
                raise ModelRefused(
                    f"its config.json has {key}={value}; no weight of its checkpoint is longer "
                    f"than {most}"
                )


def _check_width(config: Mapping[str, Any], name: str, width: int) -> None:
    numbers = {v for part in parts_of(config) for v in part.values() if isinstance(v, int)}
    stated = [part[k] for part in text_parts(config) for k in WIDTHS if k in part]
    if stated and width not in numbers:
        raise ModelRefused(
            f"its weights belong to another config.json: {name} is {width} wide, and the "
            f"hidden size is {stated[-1]}"
        )
