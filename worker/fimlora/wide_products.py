"""Products of half precision taken in float32, a piece at a time, and rounded once.

Each has the arguments of the operation it stands for.

Symbols: A rows, B inner length, C columns, N matrices of a batch.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fimlora.shapes import Float

_aten = torch.ops.aten
# Not yet in the oldest torch that is supported.
_aten_grouped_mm: Any = getattr(_aten, "_grouped_mm", None)
_attention = _aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
_attention_backward = _aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001
# 4 MiB of a weight in float32 stay in a CPU's cache and in the heap; larger pieces take longer.
_PIECE_ENTRIES = 2**20
_MIN_COLUMNS = 64  # a narrower piece would read the left factor for too little


def _mm(left: Float[Tensor, "A B"], right: Float[Tensor, "B C"]) -> Float[Tensor, "A C"]:
    product = left.new_empty(left.shape[0], right.shape[1])
    wide = left.float()
    for columns in _pieces(right):
        product[:, columns] = wide @ right[:, columns].float()
    return product


def _addmm(
    added: Tensor,
    left: Float[Tensor, "A B"],
    right: Float[Tensor, "B C"],
    *,
    beta: int | float = 1,
    alpha: int | float = 1,
) -> Float[Tensor, "A C"]:
    product = left.new_empty(left.shape[0], right.shape[1])
    wide, added = left.float(), added.expand(product.shape)
    for columns in _pieces(right):
        factors = added[:, columns].float(), wide, right[:, columns].float()
        product[:, columns] = torch.addmm(*factors, beta=beta, alpha=alpha)
    return product


def _bmm(left: Float[Tensor, "N A B"], right: Float[Tensor, "N B C"]) -> Float[Tensor, "N A C"]:
    pairs = zip(left.split(_items(right)), right.split(_items(right)), strict=True)
    return torch.cat([torch.bmm(a.float(), b.float()).to(left.dtype) for a, b in pairs])


def _baddbmm(
    added: Tensor,
    left: Float[Tensor, "N A B"],
    right: Float[Tensor, "N B C"],
    *,
    beta: int | float = 1,
    alpha: int | float = 1,
) -> Float[Tensor, "N A C"]:
    added = added.expand(len(left), left.shape[1], right.shape[2])
    parts = zip(*(tensor.split(_items(right)) for tensor in (added, left, right)), strict=True)
    products = (
        torch.baddbmm(*(t.float() for t in some), beta=beta, alpha=alpha) for some in parts
    )
    return torch.cat([product.to(left.dtype) for product in products])


def _grouped_mm(left: Tensor, right: Tensor, *rest: Any, **options: Any) -> Tensor:
    """A mixture's experts: rows up to an offset by one matrix, up to the next by another."""
    has_rows_by_expert = (left.dim(), right.dim(), len(rest)) == (2, 3, 1) and not options
    if not has_rows_by_expert:  # no frozen model multiplies so
        narrow: Tensor = _aten_grouped_mm(left, right, *rest, **options)
        return narrow
    product, start = left.new_zeros(left.shape[0], right.shape[2]), 0
    for matrix, stop in zip(right, rest[0].tolist(), strict=True):
        product[start:stop] = _mm(left[start:stop], matrix)
        start = stop
    return product


def _pieces(right: Float[Tensor, "B C"]) -> Iterator[slice]:
    """Cut a factor's columns so that a piece of it in float32 stays small."""
    length, n_columns = right.shape
    step = max(_MIN_COLUMNS, _PIECE_ENTRIES // max(1, length))
    for start in range(0, n_columns, step):
        yield slice(start, start + step)


def _items(right: Float[Tensor, "N B C"]) -> int:
    """Matrices of a batch that are widened at once."""
    return max(1, _PIECE_ENTRIES // max(1, right.shape[1] * right.shape[2]))


def _attend(query: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Attention of blocks, which leaves the probabilities out of memory."""
    inputs = _widened(query, *rest)
    output, sums = _attention(*inputs, **_mask_widened(options))
    return output.to(query.dtype), sums


def _attend_backward(gradient: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, ...]:
    gradients = _attention_backward(*_widened(gradient, *rest), **_mask_widened(options))
    return tuple(wide.to(gradient.dtype) for wide in gradients)


def _widened(*values: Any) -> list[Any]:
    return [v.float() if isinstance(v, Tensor) else v for v in values]


def _mask_widened(options: dict[str, Any]) -> dict[str, Any]:
    mask = options.get("attn_mask")
    if mask is None or not mask.is_floating_point():
        return options
    return {**options, "attn_mask": mask.float()}


# By the operation they stand for; with how many of its arguments are to be of one dtype.
WIDE_PRODUCTS: dict[Any, tuple[int, Callable[..., Any]]] = {
    _aten.mm.default: (2, _mm),
    _aten.addmm.default: (3, _addmm),
    _aten.bmm.default: (2, _bmm),
    _aten.baddbmm.default: (3, _baddbmm),
    _attention.default: (3, _attend),
    _attention_backward.default: (5, _attend_backward),
}
if _aten_grouped_mm is not None:
    WIDE_PRODUCTS[_aten_grouped_mm.default] = (2, _grouped_mm)
