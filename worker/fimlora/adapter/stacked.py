"""A and B of fused experts, as PEFT stacks them, and of each expert by itself.

Symbols: E experts, r rank, I and O features. A (E*r I) has one expert's rows below the other's; B
(O r*E) has the first columns of all experts, then the second ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fimlora.plan import TargetModule
from fimlora.shapes import Float

Pair = tuple[Tensor, Tensor]


def per_expert(
    A: Float[Tensor, "Er I"], B: Float[Tensor, "O rE"], n_experts: int
) -> list[Pair]:
    """Take the matrices of fused experts apart.

    Args:
        A: All A.
        B: All B.
        n_experts: How many experts they are of; 1 for those of a linear map.

    Returns:
        A (r I) and B (O r) of each expert.
    """
    rows = A.reshape(n_experts, -1, A.shape[1])
    columns = B.reshape(len(B), -1, n_experts).permute(2, 0, 1)
    return [(a.contiguous(), b.contiguous()) for a, b in zip(rows, columns, strict=True)]


def joined(pairs: Sequence[Pair]) -> Pair:
    """Stack matrices of experts as PEFT does.

    Args:
        pairs: A and B of each expert, all of one rank.

    Returns:
        All A, and all B.
    """
    A = torch.cat([a for a, _ in pairs])
    B = torch.stack([b for _, b in pairs], dim=2).flatten(1)
    return A.contiguous(), B.contiguous()


def only_selected(
    module: TargetModule, A: Float[Tensor, "Er I"], B: Float[Tensor, "O rE"]
) -> Pair:
    """Let no other experts train than those that are selected.

    Where A and B of an expert are both zero, so are their gradients, whatever the data: that of B
    is a product with A, and that of A one with B. An optimizer that is given zeros and decays
    weights leaves them zero.

    Args:
        module: The target; where it has no selection all is left as it is.
        A: All A.
        B: All B.

    Returns:
        Both, with zeros for every expert that is not selected.
    """
    if module.experts is None:
        return A, B
    pairs = per_expert(A, B, module.n_matrices)
    return joined(
        [
            pair
            if e in module.experts
            else (torch.zeros_like(pair[0]), torch.zeros_like(pair[1]))
            for e, pair in enumerate(pairs)
        ]
    )


def padded(A: Float[Tensor, "r I"], B: Float[Tensor, "O r"], width: int) -> Pair:
    """Give a pair a higher rank that does nothing.

    Args:
        A: Its rows.
        B: Its columns.
        width: The rank.

    Returns:
        The pair with zeros behind.
    """
    n_more = width - len(A)
    return functional.pad(A, (0, 0, 0, n_more)), functional.pad(B, (0, n_more))
