"""Leading singular triplets of a gradient, from the gradient itself or from a sketch of it.

Symbols as in `fimlora.measuring.recording.singular_values`: ``G`` (L S) a gradient turned so that
its longer side comes first where it is sketched, ``Y = G Omega`` (L P), ``Z = Psi G`` (Q S).

A triplet whose value is below `LEAST_SHARE` of the first one is rounding: it has no direction, so
its vectors are zero. Vectors have two signs; the largest entry of each right one is positive.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fimlora.measuring.recording.singular_values import sketched_spectrum
from fimlora.shapes import Float
from fimlora.statistics.groups import N_DIRECTIONS

# Sums in float32 tell nothing of smaller values.
LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class Triplets:
    """What is known of the leading directions of one gradient.

    Attributes:
        left: Left singular vectors, falling by their values.
        values: The singular values.
        right: Right singular vectors.
        error: How far off the energy of the leading values may be, as a share of it; 0
            where the gradient itself was at hand.
    """

    left: Float[Tensor, "O K"]
    values: Float[Tensor, " K"]
    right: Float[Tensor, "K I"]
    error: float

    def of_transpose(self) -> "Triplets":
        """The same of the transposed gradient."""
        return _signed(self.right.mT, self.values, self.left.mT, self.error)


def exact_triplets(G: Float[Tensor, "O I"]) -> Triplets:
    """Leading singular triplets of a gradient that is at hand.

    Args:
        G: The gradient; either side may be the longer one.

    Returns:
        Its triplets, without an error.
    """
    G = G.double()
    if G.shape[0] > G.shape[1]:
        return exact_triplets(G.mT).of_transpose()
    left, values = _of_gram(G @ G.mT)
    return _signed(left, values, _divided(left.mT @ G, values), 0.0)


def sketched_triplets(
    Y: Float[Tensor, "L P"], Z: Float[Tensor, "Q S"], Psi: Float[Tensor, "Q L"]
) -> Triplets:
    """Leading singular triplets of a gradient that only a sketch is left of.

    They are those of what the sketch shows on the range of Y; the values are those of
    `fimlora.measuring.recording.singular_values.sketched_spectrum`, less what leaks into them.

    Args:
        Y: ``G Omega``.
        Z: ``Psi G``.
        Psi: The signs behind Z.

    Returns:
        The triplets, with the error that is stated for their energy. Vectors of values that lie
        close together are mixed; the space they span is what is good.
    """
    spectrum = sketched_spectrum(Y, Z, Psi)
    Y, Z, Psi = Y.double(), Z.double(), Psi.double()
    basis = torch.linalg.qr(Y).Q  # (L P)
    seen = torch.linalg.qr(Psi @ basis)
    X = torch.linalg.solve_triangular(seen.R, seen.Q.mT @ Z, upper=True)  # about basis^T G
    left, values = _of_gram(X @ X.mT)
    right = _divided(left.mT @ X, values)
    is_known = (spectrum.values[: len(values)] > LEAST_SHARE * spectrum.values[0]).to(Y)
    return _signed(
        basis @ (left * is_known),
        spectrum.values[: len(values)] * is_known,
        right * is_known[:, None],
        spectrum.error,
    )


def _of_gram(gram: Float[Tensor, "M M"]) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors (M K) and the roots of their values (K), zero where there is none."""
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.flip(0)[:N_DIRECTIONS].clamp_min(0).sqrt()
    is_known = values > LEAST_SHARE * values[0]
    return vectors.flip(1)[:, :N_DIRECTIONS] * is_known, values * is_known


def _divided(rows: Float[Tensor, "K N"], values: Float[Tensor, " K"]) -> Tensor:
    """Rows over their values; those without one stay zero."""
    return rows / torch.where(values > 0, values, 1)[:, None]


def _signed(left: Tensor, values: Tensor, right: Tensor, error: float) -> Triplets:
    """Make the largest entry of each right vector positive."""
    largest = right.abs().argmax(dim=1, keepdim=True)
    signs = torch.where(right.gather(1, largest) < 0, -1.0, 1.0).to(right)
    return Triplets(left * signs.mT, values, right * signs, error)
