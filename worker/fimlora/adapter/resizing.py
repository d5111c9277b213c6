"""Another rank for a pair of LoRA matrices, with the least change of what they do.

Symbols: A (r I), B (O r); U S V^T the singular value decomposition of ``B A``, of which the k largest
values are kept. ``A' = sqrt(S) V^T = M A`` and ``B' = U sqrt(S) = B N`` with ``M = U^T B / sqrt(S)``
(k r) and ``N = A V / sqrt(S)`` (r k): new rows are mixtures of old ones, and gradients go along as
``dA' = N^T dA`` and ``dB' = dB M^T``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fimlora.shapes import Float

# Of the largest singular value: what is below is rounding, and a rank of it would never train, as
# neither its row of A nor its column of B had a gradient.
_NOTHING = 1e-7


@dataclass(frozen=True, slots=True)
class Rotation:
    """How the rows that were kept are made of the old ones.

    Attributes:
        M: ``A' = M A`` (k r).
        N: ``B' = B N`` (r k).
    """

    M: Float[Tensor, "k r"]
    N: Float[Tensor, "r k"]


@dataclass(frozen=True, slots=True)
class Resized:
    """A pair of matrices at another rank.

    Attributes:
        A: Its rows, those that were kept first (R I).
        B: Its columns, likewise (O R).
        kept: How many rows come from old ones; the others are drawn, with columns of zero.
        rotation: How, where they are not the leading old rows themselves.
        error: What was cut of ``B A``, as a share of its Frobenius norm.
    """

    A: Float[Tensor, "R I"]
    B: Float[Tensor, "O R"]
    kept: int
    rotation: Rotation | None = None
    error: float = 0.0


def resize_factors(
    A: Float[Tensor, "r I"], B: Float[Tensor, "O r"], drawn: Float[Tensor, "R I"]
) -> Resized:
    """Give a pair of matrices as many ranks as rows are drawn for them.

    Growing keeps A and B and adds drawn rows with columns of zero. Shrinking keeps the nearest
    ``B A`` of that rank; at B = 0, where there is nothing to be near to, the leading rows.

    Args:
        A: The matrix next to the input.
        B: The matrix next to the output.
        drawn: A new A, of which the rows are used that no old ones take.

    Returns:
        The pair in the dtypes and on the device they had.
    """
    rank, rotation, error = len(drawn), None, 0.0
    if rank < len(A) and bool(B.any()):
        A, B, rotation, error = _truncated(A, B, rank)
    kept = min(rank, len(A))
    new_A = drawn.to(A)  # a copy, unless it is as wanted already
    new_A = new_A.clone() if new_A is drawn else new_A
    new_A[:kept] = A[:kept]
    new_B = B.new_zeros(len(B), rank)
    new_B[:, :kept] = B[:, :kept]
    return Resized(new_A, new_B, kept, rotation, error)


def _truncated(
    A: Float[Tensor, "r I"], B: Float[Tensor, "O r"], rank: int
) -> tuple[Tensor, Tensor, Rotation, float]:
    """Factor the nearest update of a lower rank, balanced between A and B.

    The decomposition is taken of the r x r core of ``B A``, never of an O x I matrix.

    Returns:
        A and B with ``rank`` rows and columns, or fewer where the update has a lower rank; how they
        are made of the old ones; and the share of it that is gone.
    """
    Q_B, R_B = torch.linalg.qr(B.double())
    Q_A, R_A = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    kept = min(rank, int((_NOTHING * S[0] < S).sum()))
    root = S[:kept].sqrt()
    new_A = root[:, None] * (Vh[:kept] @ Q_A.T)
    new_B = (Q_B @ U[:, :kept]) * root
    rotation = Rotation(U[:, :kept].T @ R_B / root[:, None], R_A.T @ Vh[:kept].T / root)
    whole = S.norm()  # zero where A is, whatever B holds: nothing is cut then
    error = float(S[kept:].norm() / whole) if whole else 0.0
    return new_A.to(A), new_B.to(B), rotation, error
