"""Half-precision matrix products on a CPU that has no units for them.

There torch multiplies in plain loops: a backward pass through a bfloat16 layer can take
hundreds of times as long as in float32. Inside `widened_products` the products of
`fimlora.wide_products` take the place of torch's, whose units would round as they do.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fimlora.wide_products import WIDE_PRODUCTS

_HALF = (torch.bfloat16, torch.float16)
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
        kwargs = kwargs or {}
        n_factors, wide = WIDE_PRODUCTS.get(func, (0, func))
        if n_factors and self._are_narrow(args[:n_factors]):
            return wide(*args, **kwargs)
        return func(*args, **kwargs)

    def _are_narrow(self, factors: tuple[Tensor, ...]) -> bool:
        """Whether all are of one such dtype; torch refuses a mixture of two."""
        dtypes = {factor.dtype for factor in factors}
        is_on_cpu = all(factor.device.type == "cpu" for factor in factors)
        return is_on_cpu and len(dtypes) == 1 and dtypes <= self._dtypes
