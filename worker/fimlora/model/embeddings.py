"""Embedding tables as linear maps of one-hot vectors: what is seen of the tokens they look up.

PEFT's LoRA on a table is ``y = W[id] + s (B A)[:, id]`` with A (r, rows) and B (dim, r): that of
a linear map whose input has a one at the token's row. One example's gradient depends on which of
its tokens are equal, so vectors as long as the example stand for those as long as the table:
sums of squares, and sums over rows of the table, are the same.

Symbols: N examples, T tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fimlora.shapes import Float


def is_table(module: nn.Module) -> bool:
    """Tell an embedding that LoRA can be added to, as PEFT does it.

    Args:
        module: A module of a base model.

    Returns:
        Whether it looks rows up and does nothing else to them.
    """
    return (
        isinstance(module, nn.Embedding)
        and type(module).forward is nn.Embedding.forward
        and module.max_norm is None
        and not module.scale_grad_by_freq
        and not module.sparse
    )


def as_vectors(table: nn.Embedding, ids: Tensor, dtype: torch.dtype) -> Float[Tensor, "*N T T"]:
    """Write tokens as vectors that have a one where the same token comes first.

    Args:
        table: The embedding.
        ids: Tokens, of which the last axis are those of one example.
        dtype: Of the vectors.

    Returns:
        The vectors; those of padding, whose row gets no gradient, are zero.
    """
    same = ids.unsqueeze(-1) == ids.unsqueeze(-2)
    first = same.to(torch.uint8).argmax(-1)
    vectors = nn.functional.one_hot(first, ids.shape[-1]).to(dtype)
    if table.padding_idx is not None:
        vectors = vectors * (ids != table.padding_idx).unsqueeze(-1)
    return vectors


def tied_groups(modules: Mapping[str, nn.Module]) -> list[tuple[str, ...]]:
    """Find embeddings that share their weight, with each other or with linear maps.

    Args:
        modules: The modules of a base model by name.

    Returns:
        Names of the modules of each such weight: its tables, then the others.
    """
    tables: dict[int, list[str]] = {}
    others: dict[int, list[str]] = {}
    for name, module in modules.items():
        weight = vars(module)["_parameters"].get("weight")
        if weight is not None:
            of_kind = tables if isinstance(module, nn.Embedding) else others
            of_kind.setdefault(id(weight), []).append(name)
    groups = [(*names, *others.get(weight, ())) for weight, names in tables.items()]
    return [group for group in groups if len(group) > 1]
