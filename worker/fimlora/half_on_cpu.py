"""Half-precision matrix products on a CPU that has no units for them.

There torch multiplies in plain loops: a backward pass through a bfloat16 layer can take
hundreds of times as long as in float32. Inside `widened_products` the factors are widened, a
piece at a time, and the product is rounded once, as the missing units would do it.

Symbols: A rows, B inner length, C columns.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fimlora.shapes import Float

_aten = torch.ops.aten
# Not yet in the oldest torch that is supported.
_aten_grouped_mm: Any = getattr(_aten, "_grouped_mm", None)
_HALF = (torch.bfloat16, torch.float16)
# 4 MiB of a weight in float32 stay in a CPU's cache and in the heap; larger pieces take longer.
_PIECE_ENTRIES = 2**20
_MIN_COLUMNS = 64  # a narrower piece would read the left factor for too little
_active = threading.local()  # the dtypes that are widened on this thread


def without_units(model: nn.Module, device: torch.device) -> tuple[torch.dtype, ...]:
    """Name the dtypes a model computes in that its device multiplies in plain loops.

    Args:
        model: The model.
        device: Where it computes.

    Returns:
        Dtypes of half precision; none unless the device is a CPU.
    """
    if device.type != "cpu":
        return ()
    used = {parameter.dtype for parameter in model.parameters()}
    if torch.is_autocast_enabled("cpu"):
        used.add(torch.get_autocast_dtype("cpu"))
    return tuple(dtype for dtype in _HALF if dtype in used and not _has_units(dtype))


def _has_units(dtype: torch.dtype) -> bool:
    """Ask as torch itself does before it hands a product to its library."""
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    # A build of torch without that library has no such question, and plain loops only.
    ask = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return ask is not None and bool(ask())


def widened_for(model: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Widen the products that a device would take in plain loops for a model.

    Meant for a forward and a backward pass and no more: inside, torch chooses some other
    algorithms too, such as that of ``eigvalsh``.

    Args:
        model: The model.
        device: Where it computes.

    Returns:
        `widened_products` of what `without_units` names.
    """
    return widened_products(without_units(model, device))


def widened_dtypes() -> tuple[torch.dtype, ...]:
    """Say what is widened on this thread, for another one that works for it.

    Returns:
        What `widened_products` was given.
    """
    return getattr(_active, "dtypes", ())


@contextmanager
def widened_products(dtypes: Sequence[torch.dtype]) -> Iterator[None]:
    """Take products of these dtypes in float32 on this thread, inside the block.

    Operations of the model and of its backward pass are meant; their results keep dtype and
    layout. With no dtypes nothing is touched.

    Args:
        dtypes: What to widen.

    Yields:
        None. Products are as before when the block ends, also when it raises.
    """
    if not dtypes:
        yield
        return
    before = widened_dtypes()
    _active.dtypes = tuple(dtypes)
    try:
        with _Widened(dtypes):
            yield
    finally:
        _active.dtypes = before


class _Widened(TorchDispatchMode):
    """Replaces products below autograd, so that its formulas stay torch's own."""

    def __init__(self, dtypes: Sequence[torch.dtype]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtypes = frozenset(dtypes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, or the wide form of it."""
        wide = _WIDE.get(func)
        if wide is not None and self._is_narrow(args):
            return wide(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _is_narrow(self, args: tuple[Any, ...]) -> bool:
        """Whether the factors are of one such dtype; torch refuses a mixture of two."""
        tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
        dtypes = {t.dtype for t in tensors if t.is_floating_point()}
        return (
            len(dtypes) == 1
            and dtypes <= self._dtypes
            and all(t.device.type == "cpu" for t in tensors)
        )


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


_WIDE: dict[Any, Callable[..., Tensor]] = {
    _aten.mm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.bmm.default: _bmm,
    _aten.baddbmm.default: _baddbmm,
}
if _aten_grouped_mm is not None:
    _WIDE[_aten_grouped_mm.default] = _grouped_mm
