"""Squared gradients of a trained adapter's own A and B, example by example and rank by rank.

Symbols: N examples, T tokens of each, I and O input and output features, r rank; ``x`` (N T I) module
input, ``g`` (N T O) gradient of the summed per-example losses at its output, s the adapter's scale.
With ``z = x A^T`` and ``h = g B`` (both N T r), an example's gradients are ``dB[n] = s g[n]^T z[n]``
(O r) and ``dA[n] = s h[n]^T x[n]`` (r I). Of a gate a[k] = 1 on rank k, ``B diag(a) A``, it is
``s sum_t h[n, t, k] z[n, t, k]``: what that rank adds to the loss, to first order.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fimlora.adapter.factors import Factors
from fimlora.measuring.recording.energies import MAX_DIRECT_ENTRIES
from fimlora.measuring.recording.fisher_per_example import joined
from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import GramOf, Quantity, SeenCall, as_array
from fimlora.numerics.products import widen
from fimlora.plan import TargetModule
from fimlora.shapes import Float
from fimlora.statistics.statistics import Groups


class AdapterGradients(Quantity):
    """``sum_n ||dA[n, k, :]||^2`` and ``sum_n ||dB[n, :, k]||^2`` by rank k, and sums of gate gradients.

    Args:
        modules: The target modules.
        factors: The adapter that acts on them, by module name.
    """

    def __init__(self, modules: Sequence[TargetModule], factors: Mapping[str, Factors]) -> None:
        self._factors = factors
        self._squares = {module.name: PendingSum() for module in modules}  # (2 r)
        self._gates = {module.name: PendingSum() for module in modules}  # (r)

    def keep(self, name: str, x: Tensor, gram: GramOf) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Keep the input: A's gradient has all its features."""
        return (x,)

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Square each example's gradients over all calls."""
        A, B, scale = self._factors[name]
        x = joined([kept for (kept,), _ in calls], dim=1)
        g = joined([g for _, g in calls], dim=1)
        z, h = _product(x, A.T), _product(g, B)
        squares = torch.stack([_squares(h, x), _squares(z, g)])
        self._squares[name].stage(scale**2 * squares)
        gates = (h.double() * z.double()).sum(dim=(0, 1))
        self._gates[name].stage(scale * gates)

    def end_batch(self, order: Tensor | None) -> dict[str, Tensor]:  # noqa: ARG002
        """Give what tells whether the sums are finite."""
        sums = ((name, pending.total) for name, pending in self._squares.items())
        return {name: total.sum() for name, total in sums if total is not None}

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Give squares and gates."""
        for name in self._squares:
            yield f"adapter gradients/{name}", self._squares[name]
            yield f"adapter gates/{name}", self._gates[name]

    def results(self, n_examples: int) -> Groups:  # noqa: ARG002 - sums, not means
        """Give squares (2 r) and gates (r) per module."""
        names = [name for name, squares in self._squares.items() if squares.total is not None]
        return {
            "adapter_gradients": {name: as_array(self._squares[name].total) for name in names},
            "adapter_gates": {name: as_array(self._gates[name].total) for name in names},
        }


def _product(
    tokens: Float[Tensor, "N T F"], matrix: Float[Tensor, "F r"]
) -> Float[Tensor, "N T r"]:
    """Multiply in float32 at least: adapters are often wider than the model."""
    dtype = torch.promote_types(widen(tokens[:0]).dtype, matrix.dtype)
    return tokens.to(dtype) @ matrix.to(dtype)


def _squares(
    narrow: Float[Tensor, "N T r"],
    wide: Float[Tensor, "N T F"],
    *,
    max_entries: int = MAX_DIRECT_ENTRIES,
) -> Float[Tensor, " r"]:
    """``sum_n ||(narrow[n]^T wide[n])[k, :]||^2`` for every k, some examples at a time."""
    step = max(1, max_entries // (narrow.shape[-1] * wide.shape[-1]))
    parts = zip(narrow.split(step), wide.split(step), strict=True)
    by_part = [
        (widen(n).mT @ widen(w)).square_().sum(dim=(0, 2), dtype=torch.float64)
        for n, w in parts
    ]
    return torch.stack(by_part).sum(dim=0)
