"""Centered kernel alignment: how alike two representations of the same examples are, from 0 to 1.

Symbols: N examples; ``K`` and ``L`` (N N) the inner products of the examples' features in either
representation. The alignment is ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))``.

The usual HSIC centers K and multiplies, and is biased: with fewer examples than features every
two representations look alike, as each example is like itself alone (independent Gaussians,
N 128 and 4,096 features: 0.97). The debiased one (Song et al. 2012) leaves the diagonal out:
``[tr(K L) + 1'K1 1'L1 / ((N-1)(N-2)) - 2 / (N-2) 1'K L1] / (N (N-3))`` with diagonals of zero. It
is an inner product of matrices centered so that their rows and their diagonal are zero (Szekely
and Rizzo 2014), which is how it is computed here: the sum above would cancel. It may fall below 0.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FEWEST = 4  # examples: the debiased estimate divides by N - 3
# Of the energy of a kernel, what centering leaves of one that is constant: rounding.
_ROUNDING = 1e-10


class Alignment(NamedTuple):
    """How alike two representations are.

    Attributes:
        debiased: The debiased estimate, from -1 to 1.
        biased: The usual one, from 0 to 1.
    """

    debiased: float
    biased: float


def linear_alignment(X: Floats, Y: Floats) -> Alignment:
    """Compare two representations of the same examples by their inner products.

    Args:
        X: Features of each example in the one (N I).
        Y: And in the other (N O).

    Returns:
        The alignment; 0 where examples do not differ in one of them, as nothing of the other is
        in it.

    Raises:
        ValueError: There are fewer than 4 examples.
    """
    if len(X) < FEWEST:
        raise ValueError(f"{len(X)} examples: the debiased estimate takes at least {FEWEST}")
    K, L = _kernel(X), _kernel(Y)
    if K is None or L is None:
        return Alignment(0.0, 0.0)
    return Alignment(
        _cosine(_centered_off_diagonal(K), _centered_off_diagonal(L)), max(0.0, _cosine(K, L))
    )


def _kernel(X: Floats) -> Floats | None:
    """Inner products of centered features; ``None`` where the examples are all alike."""
    spread = X - X.mean(axis=0)
    if np.square(spread).sum() <= _ROUNDING * np.square(X).sum():
        return None
    return np.asarray(spread @ spread.T)


def _centered_off_diagonal(K: Floats) -> Floats:
    """Center off the diagonal: rows come to zero without it, and it is zero itself."""
    n = len(K)
    off = K - np.diag(np.diag(K))
    rows = off.sum(axis=0)
    centered = off - (rows[:, None] + rows) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centered, 0)
    return np.asarray(centered)


def _cosine(K: Floats, L: Floats) -> float:
    norms = float(np.sqrt(np.square(K).sum() * np.square(L).sum()))
    return float((K * L).sum()) / norms if norms else 0.0
