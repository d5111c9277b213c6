"""Leave out products that nobody uses when a block is run again for its gradients.

The second run of a block is there for its graph. The last product of most blocks is only
added to what flows through the model and leaves the block: no derivative needs its value,
and the value itself was passed on long ago. The first run shows, operation by operation,
for which linear maps that is so; the second one makes their graph without the product. In
a Llama block that is ``down_proj``, a quarter of the block's forward pass.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

_aten = torch.ops.aten
# What passes values on without their being needed again: neither for its own derivative,
# nor to decide anything.
_PASSING = {
    _aten._to_copy.default,  # noqa: SLF001
    _aten._unsafe_view.default,  # noqa: SLF001
    _aten.add.Tensor,
    _aten.add_.Tensor,
    _aten.alias.default,
    _aten.clone.default,
    _aten.detach.default,
    _aten.permute.default,
    _aten.squeeze.dim,
    _aten.t.default,
    _aten.transpose.int,
    _aten.unsqueeze.default,
    _aten.view.default,
}
_PRODUCTS = {_aten.mm.default: 0, _aten.addmm.default: 1}  # and where the left factor stands


class Uses(TorchDispatchMode):
    """Follows what linear maps have made through the operations of a run.

    Attributes:
        unused: Names of the maps that nobody has used.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unused: set[str] = set()
        self._used: set[str] = set()
        # By address: memory that is used again gets its names from its new content.
        self._made_of: dict[int, frozenset[str]] = {}

    def see(self, name: str, output: Any) -> None:
        """Follow what a linear map has made.

        Args:
            name: Its name.
            output: Its output.
        """
        if name in self._used or not isinstance(output, Tensor):
            return
        self.unused.add(name)
        self._made_of[_address(output)] = frozenset([name])

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation; note whose values it uses and whose it passes on."""
        kwargs = kwargs or {}
        made_of = self._made_of
        if not made_of:
            return func(*args, **kwargs)
        given = {
            _address(leaf)
            for leaf in pytree.arg_tree_leaves(*args, **kwargs)
            if isinstance(leaf, Tensor)
        }
        names = frozenset[str]().union(*(made_of.get(address, ()) for address in given))
        result = func(*args, **kwargs)
        if names and func not in _PASSING:
            self._used |= names
            self.unused -= names
            names = frozenset()
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                address = _address(leaf)
                kept = made_of.get(address, frozenset()) if address in given else frozenset()
                made_of[address] = names | kept
        return result


class _Skip(TorchDispatchMode):
    """Gives memory of the right size in the place of matrix products."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _PRODUCTS and not kwargs:
            left, right = args[_PRODUCTS[func] :][:2]
            return left.new_empty(left.shape[0], right.shape[1])
        return func(*args, **(kwargs or {}))


def linear_maps(block: nn.Module) -> dict[str, nn.Module]:
    """Name the linear maps of a block.

    Args:
        block: The block.

    Returns:
        Those whose product is one of whole matrices.
    """
    return {n: m for n, m in block.named_modules() if type(m) in {nn.Linear, Conv1D}}


@contextmanager
def track_uses(block: nn.Module) -> Iterator[Uses]:
    """Follow what the linear maps of a block make, inside the block.

    Args:
        block: The block.

    Yields:
        Whose values are used.
    """

    def watching(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            uses.see(name, output)
            return output

        return watched

    uses = Uses()
    with _wrapped(linear_maps(block), watching), uses:
        yield uses


@contextmanager
def skip_products(block: nn.Module, names: set[str]) -> Iterator[None]:
    """Let linear maps make their graph without their product, inside the block.

    Args:
        block: The block.
        names: Those of its linear maps that nobody uses.

    Yields:
        None. The modules are as before when the block ends, also when it raises.
    """

    def skipping(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:  # noqa: ARG001
        def skipped(*args: Any, **kwargs: Any) -> Any:
            # Below autograd, which records the product as ever.
            with _Skip():  # type: ignore[no-untyped-call]
                return forward(*args, **kwargs)

        return skipped

    maps = {name: module for name, module in linear_maps(block).items() if name in names}
    with _wrapped(maps, skipping):
        yield


@contextmanager
def _wrapped(
    modules: Mapping[str, nn.Module],
    wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Wrap forward methods inside the block; they may be wrapped already."""
    before = {name: module.__dict__.get("forward") for name, module in modules.items()}
    try:
        for name, module in modules.items():
            module.forward = wrap(name, module.forward)
        yield
    finally:
        for name, module in modules.items():
            module.__dict__.pop("forward", None)
            if (forward := before[name]) is not None:
                module.forward = forward


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
