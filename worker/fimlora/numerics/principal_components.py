"""Leading principal components of rows that come in parts, from no more than the components.

Symbols: I features, K components; ``X`` (n I) the rows of a part, ``m`` their mean. The scatter
of all rows so far, ``V^T S^2 V`` with ``S`` (K) and ``V`` (K I) as far as it is kept, is that of
the rows ``S V``; that of the rows with another part is that of the rows

    S V,   X - m,   sqrt(n1 n2 / (n1 + n2)) (m1 - m)

whose leading right singular vectors are the new V (Ross et al. 2008). Nothing is lost but what
lies outside the K leading directions at some point.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fimlora.shapes import Float

# Directions whose squared singular value is a smaller share of the largest are rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False, slots=True)
class Components:
    """The leading principal components of some rows.

    Attributes:
        n_rows: How many rows that are.
        n_parts: In how many parts they came.
        mean: Their mean.
        total: The sum of their squared distances from it, in all directions.
        values: Singular values of the centred rows along the components, falling.
        vectors: The components, of length one each; the largest entry of each is above zero.
        similarity: The least cosine between a component and the one in its place before the last
            part; 0 where one has none.
    """

    n_rows: int
    n_parts: int
    mean: Float[Tensor, " I"]
    total: Float[Tensor, ""]
    values: Float[Tensor, " K"]
    vectors: Float[Tensor, "K I"]
    similarity: Float[Tensor, ""]

    @property
    def ratios(self) -> Float[Tensor, " K"]:
        """Shares of the variance that lie along the components."""
        squares = self.values.square()
        return squares / self.total if self.total > 0 else torch.zeros_like(squares)


def with_rows(
    before: Components | None, rows: Float[Tensor, "N I"], n_components: int
) -> Components:
    """Take another part of the rows.

    Args:
        before: The components of all parts before it; ``None`` for the first.
        rows: Its rows, at least one.
        n_components: Components to keep at most.

    Returns:
        The components of all rows; of NaN where a row is not finite.
    """
    found = joined(
        [] if before is None else [before], n_components, more=rows.to(torch.float64)
    )
    return found if before is None else _compared(found, before)


def joined(
    parts: Sequence[Components],
    n_components: int,
    *,
    more: Float[Tensor, "N I"] | None = None,
) -> Components:
    """Put the components of several sets of rows together, in whatever order.

    Args:
        parts: The components of each.
        n_components: Components to keep at most.
        more: Rows that there are besides, in float64.

    Returns:
        The components of all rows.
    """
    sizes, means = [part.n_rows for part in parts], [part.mean for part in parts]
    stacked = [part.values[:, None] * part.vectors.to(torch.float64) for part in parts]
    total = sum((part.total for part in parts), torch.zeros((), dtype=torch.float64))
    dtype = parts[0].vectors.dtype if parts else torch.float32
    if more is not None:
        sizes, means = [*sizes, len(more)], [*means, more.mean(dim=0)]
        stacked.append(more - means[-1])
        total = total + stacked[-1].square().sum()
    n_rows = sum(sizes)
    mean = torch.stack([n / n_rows * mean for n, mean in zip(sizes, means, strict=True)]).sum(0)
    if len(sizes) > 1:
        roots = torch.tensor(sizes, dtype=torch.float64, device=mean.device).sqrt()
        apart = roots[:, None] * (torch.stack(means) - mean)
        stacked.append(apart)
        total = total + apart.square().sum()
    values, vectors = _leading(torch.cat(stacked), n_components)
    n_parts = sum(part.n_parts for part in parts) + (more is not None)
    similarity = (
        torch.stack([part.similarity for part in parts]).min() if parts else total.new_zeros(())
    )
    return Components(n_rows, n_parts, mean, total, values, vectors.to(dtype), similarity)


def _leading(
    rows: Float[Tensor, "M I"], n_components: int
) -> tuple[Float[Tensor, " K"], Float[Tensor, "K I"]]:
    """Leading singular values and right singular vectors, by the smaller Gram matrix."""
    is_wide = rows.shape[0] <= rows.shape[1]
    gram = rows @ rows.mT if is_wide else rows.mT @ rows
    if not gram.isfinite().all():  # which no solver is to see
        return rows.new_full((1,), torch.nan), rows.new_full((1, rows.shape[1]), torch.nan)
    squares, found = torch.linalg.eigh(gram)
    squares, found = squares.flip(0)[:n_components], found.flip(1)[:, :n_components]
    is_there = squares > _ROUNDING * squares[0].clamp_min(torch.finfo(torch.float64).tiny)
    values, found = squares[is_there].sqrt(), found[:, is_there]
    vectors = found.mT @ rows / values[:, None] if is_wide else found.mT
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    return values, vectors * vectors.gather(1, largest).sign()


def _compared(found: Components, before: Components) -> Components:
    """Say how far the components have turned."""
    old, new = before.vectors, found.vectors
    similarity = found.total.new_zeros(())
    if 0 < len(new) <= len(old):
        similarity = (old[: len(new)] * new).sum(dim=1, dtype=torch.float64).min()
    return Components(
        found.n_rows, found.n_parts, found.mean, found.total, found.values, new, similarity
    )
