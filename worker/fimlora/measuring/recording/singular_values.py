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
    return Spectrum(_leading(gram), G.square().sum().item(), 0.0)


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
    Y, Z, Psi = Y.double(), Z.double(), Psi.double()
    n_rows, width = Z.shape[0], Y.shape[1]
    basis = torch.linalg.qr(Y).Q  # (L P)
    seen = torch.linalg.qr(Psi @ basis)  # (Q P), (P P)
    inside = seen.Q.mT @ Z  # (P S)
    X = torch.linalg.solve_triangular(seen.R, inside, upper=True)  # about basis^T G
    tail = (Z - seen.Q @ inside).square().sum() / (n_rows - width)
    # As Q = 2 P + 1, X has as much of the tail on top of basis^T G as it misses of G. It is
    # spread evenly over the rows of X; the energies of X and of G are the same.
    noise = tail / width
    values = _leading(X @ X.mT, less=noise)
    energy = X.square().sum()
    leading = values[:N_LEADING].square().sum() + N_LEADING * noise
    leaked = (N_LEADING * noise / leading).item() if leading > 0 else 0.0
    error = _LEAK_FACTOR * leaked + _SIGN_ERROR
    return Spectrum(values, energy.item(), error)


def _leading(gram: Float[Tensor, "M M"], *, less: Tensor | float = 0.0) -> Float[Tensor, " K"]:
    """Square roots of the leading eigenvalues, after something is taken off each."""
    squares: Tensor = torch.linalg.eigvalsh(gram).flip(0)[:N_VALUES] - less
    return squares.clamp_min(0).sqrt()
