"""Which token ids and how many positions a model has room for, read from its tables.

A table is asked, not the config: families differ in how many of their rows are positions of
tokens. RoBERTa and its like begin behind the row of padding, OPT and BART behind two rows.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fimlora.model.targets import base_model_of

# Beginnings of the names of tables that count something else than the tokens of a text.
_OTHER_AXES = ("x_", "y_", "h_", "w_", "box_", "query_", "entity_", "relative_")


@dataclass(frozen=True)
class InputLimits:
    """What a model can be given.

    Attributes:
        n_ids: Token ids go from 0 to one less; ``None`` where nobody knows.
        n_positions: Tokens of an example at most; ``None`` where no table ends.
        image_token: The token that stands where parts of an image go; ``None`` without images.
    """

    n_ids: int | None = None
    n_positions: int | None = None
    image_token: int | None = None


def input_limits(model: nn.Module) -> InputLimits:
    """Read the limits off a model's embeddings, which may be without values.

    Args:
        model: A model, wrapped by PEFT or not.

    Returns:
        Its limits.
    """
    base: Any = base_model_of(model)
    try:
        embedding = base.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # it has none, or more than one
        embedding = None
    if not isinstance(embedding, nn.Module) or not hasattr(embedding, "padding_idx"):
        return InputLimits()  # some other projection of what comes in
    owner = _owner_of(embedding, base)
    found = [_n_positions(table) for name, table in owner.named_modules() if _counts(name)]
    n_positions = min((n for n in found if n is not None), default=None)
    stated = getattr(getattr(base, "config", None), "max_position_embeddings", None)
    if n_positions is not None and isinstance(stated, int):
        n_positions = min(n_positions, stated)
    image_token = _image_token(getattr(base, "config", None))
    return InputLimits(embedding.get_parameter("weight").shape[0], n_positions, image_token)


def _image_token(config: Any) -> int | None:
    names = ("image_token_id", "image_token_index")
    found = (getattr(config, name, None) for name in names)
    return next((token for token in found if isinstance(token, int)), None)


def _owner_of(embedding: nn.Module, base: nn.Module) -> nn.Module:
    """Find the module that holds an embedding; a tower for images is never in it."""
    for module in base.modules():
        if any(child is embedding for child in module.children()):
            return module
    return base


def _counts(name: str) -> bool:
    """Tell a table of positions by its name."""
    leaf = name.rpartition(".")[2]
    named_so = "position" in leaf and "emb" in leaf and not leaf.startswith(_OTHER_AXES)
    return named_so or leaf == "wpe"


def _n_positions(table: nn.Module) -> int | None:
    """Count the rows that tokens may have; ``None`` where they are made as needed."""
    weight = getattr(table, "weight", None)
    grows = hasattr(table, "make_weight") or hasattr(table, "make_weights")
    if not isinstance(weight, Tensor) or weight.dim() != 2 or grows:
        return None
    padding: int | None = getattr(table, "padding_idx", None)
    first: int = getattr(table, "offset", 0) if padding is None else padding + 1
    return weight.shape[0] - first
