"""How much arithmetic the estimators add to a pass, from shapes alone. Nothing here imports torch.

Symbols: T tokens of an example, I and O input and output features of a linear map, P rows of a
drawn A. Everything is counted in multiplications for one token.

A *bare pass* multiplies each token with each map's weight forward, and its gradient with the
weight on the way back: ``2 I O`` for every linear map of the model. ``exact`` compares a token
with about half of the others, in blocks (`GRAM_SHARE` of them), once as inputs and once as
gradients: ``GRAM_SHARE T (I + O)`` for every target module; or it forms the gradient, ``I O``,
where that is less. ``sketched`` projects the input and multiplies the gradient with that:
``P (I + O)``.

Left out is what is small where the two are close, at lengths of about a sixth of the features:
attention, which makes the bare pass larger (by ``T / 4 d`` with the usual shapes of width d), and
modules with one input, which share its part (query, key and value). Both make ``exact`` look
dearer than it is, never cheaper.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fimlora.plan import TargetModule

# A Gram matrix is cut into this many rows of blocks. With 4, 10 of 16 blocks are computed and
# products stay in cache; 8 gained nothing more.
N_BLOCK_ROWS = 4
GRAM_SHARE = (N_BLOCK_ROWS + 1) / (2 * N_BLOCK_ROWS)
# What `exact` may add to the arithmetic of a bare pass before it is sketched.
MOST_ADDED = 0.1


class Added(NamedTuple):
    """What two estimators add to the arithmetic of a bare pass, as shares of it.

    Attributes:
        exact: What ``exact`` adds.
        sketched: What ``sketched`` adds.
    """

    exact: float
    sketched: float

    @property
    def is_exact_worth_it(self) -> bool:
        """Whether ``exact`` adds little, or no more than ``sketched`` would."""
        return self.exact < MOST_ADDED or self.exact <= self.sketched


def gram_is_cheaper(n_tokens: int, d_in: int, d_out: int) -> bool:
    """Compare the multiplications by Gram matrix, ``T^2 (I + O)``, with ``T I O`` directly.

    Returns:
        Whether the Gram matrix costs less for this shape.
    """
    return _by_gram(n_tokens, d_in, d_out) < d_in * d_out


def added_arithmetic(
    targets: Sequence[TargetModule],
    linear_maps: Iterable[TargetModule],
    *,
    n_tokens: int,
    rank: int,
) -> Added:
    """Say what estimators add to a bare pass.

    Args:
        targets: The target modules.
        linear_maps: All linear maps of the model, these among them.
        n_tokens: Tokens of an example.
        rank: Rows of the A of ``sketched``.

    Returns:
        Shares of the bare pass's arithmetic.
    """
    bare = sum(2 * m.d_in * m.d_out for m in linear_maps)
    by_gram_or_directly = (
        min(_by_gram(n_tokens, m.d_in, m.d_out), m.d_in * m.d_out) for m in targets
    )
    sketched = rank * sum(m.d_in + m.d_out for m in targets)
    return Added(sum(by_gram_or_directly) / bare, sketched / bare)


def _by_gram(n_tokens: int, d_in: int, d_out: int) -> float:
    return GRAM_SHARE * n_tokens * (d_in + d_out)
