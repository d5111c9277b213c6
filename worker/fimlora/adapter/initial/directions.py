"""What the initial weights have in common: the modules of an adapter, and directions of gradients.

Symbols: r rank, I and O input and output features; ``G`` (O I) the mean gradient, with singular
triplets ``U S V^T``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fimlora.plan import RankPlan, TargetModule
from fimlora.shapes import Float
from fimlora.statistics import Statistics

Factors = dict[str, tuple[Tensor, Tensor]]
"""A (r I) and B (O r) by module name; of E fused experts A (E*r I), one expert's rows below the
other's, and B (O r*E), the first columns of all experts before their second ones."""


@dataclass(frozen=True, slots=True)
class Directions:
    """Leading singular triplets of a module's mean gradient, in float64.

    Attributes:
        U: Left vectors; a column that is zero stands for a direction that the gradient lacks.
        S: Values, falling.
        V: Right vectors, as rows.
    """

    U: Float[Tensor, "O K"]
    S: Float[Tensor, " K"]
    V: Float[Tensor, "K I"]


def adapted(plan: RankPlan) -> Iterator[tuple[TargetModule, int]]:
    """Go through the modules that get an adapter, with their ranks.

    Yields:
        Module and rank.
    """
    for module in plan.modules:
        if rank := plan.ranks[module.name]:
            yield module, rank


def directions_of(statistics: Statistics, module: TargetModule) -> Directions:
    """Read what was recorded of a module.

    Args:
        statistics: The statistics.
        module: The module.

    Returns:
        Its directions.
    """
    groups = ("gradient_left", "gradient_values", "gradient_right")
    U, S, V = (torch.as_tensor(statistics.quantities[g][module.name]).double() for g in groups)
    return Directions(U, S, V)


def leading(rows: Float[Tensor, "K N"], start: int, rank: int) -> Float[Tensor, "r N"]:
    """Take rows from a first one on; those that there are not are zero.

    Args:
        rows: The rows.
        start: The first one.
        rank: How many.

    Returns:
        The rows.
    """
    found = rows.new_zeros(rank, rows.shape[1])
    some = rows[start : start + rank]
    found[: len(some)] = some
    return found


def filled(A: Float[Tensor, "r I"], drawn: Float[Tensor, "r I"]) -> Float[Tensor, "r I"]:
    """Let rows that are zero be the drawn ones: a rank of zeros in A and B would never train.

    Args:
        A: The rows.
        drawn: Those of a seeded A.

    Returns:
        A with no row of zeros.
    """
    return torch.where(A.any(dim=1, keepdim=True), A, drawn.to(A))
