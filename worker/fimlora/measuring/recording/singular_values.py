"""Leading singular values of a gradient, from the gradient itself or from a sketch of it.

Symbols: ``G`` (L S) a gradient, turned so that its longer side L comes first; Omega (S P)
and Psi (Q L) random signs, Q = 2 P + 1; ``Y = G Omega`` (L P) and ``Z = Psi G`` (Q S), both
linear in G and so additive over tokens and batches.

The sketch is read in one pass: the range of Y nearly holds the leading left singular
vectors, and least squares in Psi gives what G is on that range. What Z shows outside that
range, the *tail*, leaks into the values evenly; it is measured and taken off each of them.
The error that is stated is three times what it was of the leading ones, plus 0.1 % for the
draw of the signs. Powers of j from -0.5 to -2, three draws, P 64 to 256: it covered the
error of the leading 16 values' energy wherever it was below 1 % itself. Each single one of
them was within 1.2 % at P = 256 where they fall as 1 / j or faster.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fimlora.memory.need import N_VALUES
from fimlora.shapes import Float

# The error is stated for the energy of this many leading values.
N_LEADING = 16
_LEAK_FACTOR, _SIGN_ERROR = 3, 1e-3


@dataclass(frozen=True)
class Spectrum:
    """What is known of the singular values of one gradient.

    Attributes:
        values: The leading singular values, falling.
        energy: ``||G||_F^2``, the sum of the squares of all of them.
        error: How far off the energy of the leading values may be, as a share of it; 0
            where the gradient itself was at hand.
    """

    values: Float[Tensor, " K"]
    energy: float
    error: float


def exact_spectrum(G: Float[Tensor, "O I"]) -> Spectrum:
    """Leading singular values of a gradient that is at hand.

    Args:
        G: The gradient; either side may be the longer one.

    Returns:
        Its spectrum, without an error.
    """
    G = G.double()
    # In float64 the squares of the Gram matrix cost no digit that a float32 gradient has.
    gram = G.mT @ G if G.shape[0] > G.shape[1] else G @ G.mT
    return Spectrum(leading_values(gram), G.square().sum().item(), 0.0)


def sketched_spectrum(
    Y: Float[Tensor, "L P"], Z: Float[Tensor, "Q S"], Psi: Float[Tensor, "Q L"]
) -> Spectrum:
    """Leading singular values of a gradient that only a sketch is left of.

    Args:
        Y: ``G Omega``.
        Z: ``Psi G``.
        Psi: The signs behind Z.

    Returns:
        The spectrum. Its energy is unbiased however flat it is; its values are good to the
        error that is stated while that is small; above 1 % they are not to be trusted.
    """
    read = read_sketch(Y, Z, Psi)
    # As Q = 2 P + 1, X has as much of the tail on top of basis^T G as it misses of G. It is
    # spread evenly over the rows of X; the energies of X and of G are the same.
    noise = read.tail() / Y.shape[1]
    values = leading_values(read.X @ read.X.mT, less=noise)
    error = error_of_leading(values, N_LEADING * noise)
    return Spectrum(values, read.X.square().sum().item(), error)


class ReadSketch(NamedTuple):
    """What a sketch shows of a gradient.

    Attributes:
        basis: Orthonormal directions that nearly hold its leading left vectors (L P).
        X: About ``basis^T G`` (P S); noise of the tail's energy lies over it, evenly in its rows.
        residual: What of Z no G on that basis explains (Q S).
    """

    basis: Float[Tensor, "L P"]
    X: Float[Tensor, "P S"]
    residual: Float[Tensor, "Q S"]

    @property
    def n_spare(self) -> int:
        """Rows of Z beyond those that the basis needs."""
        return self.residual.shape[0] - self.basis.shape[1]

    def tail(self, factors: Tensor | float = 1.0) -> Tensor:
        """Estimate the energy outside the basis, unbiased.

        Args:
            factors: What to multiply the S columns by.

        Returns:
            The energy.
        """
        return (self.residual * factors).square().sum() / self.n_spare


def read_sketch(
    Y: Float[Tensor, "L P"], Z: Float[Tensor, "Q S"], Psi: Float[Tensor, "Q L"]
) -> ReadSketch:
    """Find what a sketch says of its gradient, by least squares.

    Args:
        Y: ``G Omega``.
        Z: ``Psi G``.
        Psi: The signs behind Z.

    Returns:
        It, in float64.
    """
    Y, Z, Psi = Y.double(), Z.double(), Psi.double()
    basis = torch.linalg.qr(Y).Q  # (L P)
    seen = torch.linalg.qr(Psi @ basis)  # (Q P), (P P)
    inside = seen.Q.mT @ Z  # (P S)
    X = torch.linalg.solve_triangular(seen.R, inside, upper=True)
    return ReadSketch(basis, X, Z - seen.Q @ inside)


def error_of_leading(values: Float[Tensor, " K"], leaked: Tensor) -> float:
    """State how far off the energy of the leading values may be.

    Args:
        values: The values, with what leaked into them taken off.
        leaked: Energy that leaked into the leading `N_LEADING` of them.

    Returns:
        A share of their energy.
    """
    leading = values[:N_LEADING].square().sum() + leaked
    share = (leaked / leading).item() if leading > 0 else 0.0
    return _LEAK_FACTOR * share + _SIGN_ERROR


def leading_values(
    gram: Float[Tensor, "M M"], *, less: Tensor | float = 0.0, n_values: int | None = N_VALUES
) -> Float[Tensor, " K"]:
    """Take square roots of the leading eigenvalues, after something is taken off each.

    Args:
        gram: The matrix, symmetric.
        less: What is taken off.
        n_values: How many at most; ``None`` for all.

    Returns:
        The values, falling.
    """
    squares: Tensor = torch.linalg.eigvalsh(gram).flip(0)[:n_values] - less
    return squares.clamp_min(0).sqrt()
