"""Singular values of a gradient over the spread of its input features, whole or from a sketch.

Symbols: ``G`` (O I) a gradient, ``c`` (I) the mean squares of its input features, ``d`` (I) the
factors that whiten them, ``d = (c + lambda)^(-1/2)`` with lambda 1 % of the mean of c;
``M = G diag(d)``. Y, Z, Psi, P, Q, L and S as in `fimlora.measuring.recording.singular_values`.

The factors are known only at the end of a run, when of some gradients a sketch is left.

- Where I is the shorter side, ``Z diag(d) = Psi M`` is the sketch that M would have had, and
  ``Y = M (diag(d)^-1 Omega)`` is one with another test matrix: its range serves as well. Error and
  energy are stated as they are without factors.
- Where I is the longer side, the rows that are known of G are turned by the factors, and so is
  the noise in them, by no more than its directions allow. What Z shows outside of them may meet
  any of the factors: its energy is stated between the smallest and the largest of them, and not
  beyond what the columns of Y, of which each is an unbiased estimate of the whole, allow.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fimlora.measuring.recording.mean_gradient import Sketch
from fimlora.measuring.recording.singular_values import (
    N_LEADING,
    ReadSketch,
    error_of_leading,
    leading_values,
    read_sketch,
)
from fimlora.shapes import Float

DAMPING = 0.01
# Within so many standard errors an estimate by random signs is taken to lie.
_SURE = 3.0


@dataclass(frozen=True)
class WhitenedSpectrum:
    """What is known of the singular values of M.

    Attributes:
        values: All of them where the gradient was whole, else the leading ones; falling.
        energies: ``||M||_F^2``: the least that it may be, an estimate, and the most.
        error: How far off the energy of the leading values may be, as a share of it; 0 where
            the gradient itself was at hand.
    """

    values: Float[Tensor, " K"]
    energies: tuple[float, float, float]
    error: float


def whitening_factors(mean_squares: Float[Tensor, " I"]) -> Float[Tensor, " I"]:
    """Give the factors that whiten input features.

    Args:
        mean_squares: Mean of each feature's square.

    Returns:
        The factors in float64; ones where there is no input at all.
    """
    c = mean_squares.double()
    damped = c + DAMPING * c.mean()
    return torch.where(damped > 0, damped, 1).rsqrt()


def whitened_exactly(G: Float[Tensor, "O I"], d: Float[Tensor, " I"]) -> WhitenedSpectrum:
    """Decompose a gradient that is at hand.

    Args:
        G: The gradient.
        d: The factors.

    Returns:
        All its values, without an error.
    """
    M = G.double() * d
    gram = M.mT @ M if M.shape[0] > M.shape[1] else M @ M.mT
    energy = M.square().sum().item()
    values = leading_values(gram, n_values=None)
    return WhitenedSpectrum(values, (energy, energy, energy), 0.0)


def whitened_from_sketch(sketch: Sketch, d: Float[Tensor, " I"]) -> WhitenedSpectrum:
    """Read the values of M from a sketch of G.

    Args:
        sketch: The sketch.
        d: The factors.

    Returns:
        The leading values, with the error that is stated for them.
    """
    read = read_sketch(sketch.Y, sketch.Z, sketch.Psi)
    return _along_rows(sketch, read, d) if sketch.is_wide else _along_columns(read, d)


def _along_columns(read: ReadSketch, d: Float[Tensor, " S"]) -> WhitenedSpectrum:
    """Whiten the shorter side: all that is read is that of M."""
    X, tail = read.X * d, read.tail(d)
    noise = tail / len(X)
    values = leading_values(X @ X.mT, less=noise)
    # What the noise adds by chance to the rows that are known, beside what the tail may be.
    by_chance = 2 * _SURE * values[0] * noise.sqrt()
    energy, unsure = X.square().sum(), _spread(read) * tail + by_chance
    return WhitenedSpectrum(
        values,
        ((energy - unsure).clamp_min(0).item(), energy.item(), (energy + unsure).item()),
        error_of_leading(values, N_LEADING * noise),
    )


def _along_rows(sketch: Sketch, read: ReadSketch, d: Float[Tensor, " L"]) -> WhitenedSpectrum:
    """Whiten the longer side, of which the basis holds some directions and Z mixes all."""
    tail = read.tail()
    noise = tail / len(read.X)
    turned = torch.linalg.qr(read.basis * d[:, None], mode="r").R  # (P P)
    spread = turned @ turned.mT
    gram = turned @ (read.X @ read.X.mT) @ turned.mT - noise * spread
    values = leading_values(gram)
    leaked = noise * leading_values(spread)[:N_LEADING].square().sum()
    captured = gram.diagonal().sum().clamp_min(0)
    return WhitenedSpectrum(
        values,
        _energies(captured, tail, d, sketch.Y.double() * d[:, None], _spread(read)),
        error_of_leading(values, leaked),
    )


def _energies(
    captured: Tensor, tail: Tensor, d: Tensor, Y: Float[Tensor, "L P"], spread: float
) -> tuple[float, float, float]:
    """State the energy of M by what is inside the basis, what is outside, and the columns of Y."""
    outside = ((1 + spread) * tail * d.max().square()).sqrt()
    columns = Y.square().sum(dim=0)
    unsure = _SURE * columns.std() / len(columns) ** 0.5
    least = torch.maximum(
        (captured.sqrt() - outside).clamp_min(0).square(), columns.mean() - unsure
    )
    most = torch.minimum((captured.sqrt() + outside).square(), columns.mean() + unsure)
    least, most = torch.minimum(least, most), torch.maximum(least, most)
    estimate = (captured + tail * d.square().mean()).clamp(least, most)
    return least.item(), estimate.item(), most.item()


def _spread(read: ReadSketch) -> float:
    """How far the energy of a tail in one direction may be off, as a share of it."""
    return _SURE * math.sqrt(2 / read.n_spare)
