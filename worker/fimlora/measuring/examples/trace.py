"""What every part of a model gives for the tokens of an example, in a few numbers each.

Two passes over one example are compared part by part: where a difference begins it is as
large as what differs, while it may be lost in the model's output, or in rounding.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fimlora.model.hooks import after_calls
from fimlora.numerics.last_input import LastInput

_N_NUMBERS = 8  # of each token's features
_LEAST = 1e-6  # the smallest relative difference that counts


@dataclass(frozen=True)
class Seen:
    """One tensor that a module gave.

    Attributes:
        shape: Its shape.
        axis: Where its tokens are; ``None`` where all of it is compared.
        sizes: Norm of each row.
        numbers: A random projection of each row.
        dtype: Its dtype.
    """

    shape: tuple[int, ...]
    axis: int | None
    sizes: Tensor
    numbers: Tensor
    dtype: torch.dtype


@dataclass
class Trace:
    """What the modules gave in one pass over one example.

    Attributes:
        width: Columns of the pass.
        columns: Those of them that are tokens.
        seen: What each module gave, tensor by tensor, by where its tokens may be.
    """

    width: int
    columns: Sequence[int]
    seen: dict[str, list[dict[int | None, Seen]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    # A module often returns what its last part did.
    _last: LastInput[dict[int | None, Seen]] = field(default_factory=LastInput)

    def see(self, name: str, output: Any) -> None:
        """Take note of a module's output.

        Args:
            name: Its name.
            output: Whatever it returned.
        """
        with torch.no_grad():
            for tensor in _tensors_of(output):
                seen = self._last.get(tensor, lambda t=tensor: self._sketches(t))  # type: ignore[misc]
                self.seen[name].append(seen)

    def _sketches(self, tensor: Tensor) -> dict[int | None, Seen]:
        axes = _axes(tensor.shape, self.width)
        return {axis: self._sketch(tensor, axis) for axis in axes}

    def _sketch(self, tensor: Tensor, axis: int | None) -> Seen:
        wide = torch.promote_types(tensor.dtype, torch.float32)
        if axis is None:
            rows = tensor.reshape(-1, tensor.shape[-1])
        else:
            rows = tensor.movedim(axis, 0)
            if len(self.columns) < self.width:
                rows = rows[torch.tensor(self.columns, device=tensor.device)]
            rows = rows.flatten(1)
        rows = rows.to(wide).nan_to_num()
        numbers = rows @ _projection(rows.shape[1], rows.dtype, rows.device)
        return Seen(tuple(tensor.shape), axis, rows.norm(dim=1), numbers, tensor.dtype)

    def differs(self, other: "Trace") -> bool:
        """Compare with another pass over the same tokens.

        Args:
            other: It, with another number of columns.

        Returns:
            Whether anything that a module gave for a token is another one.
        """
        pairs = [
            (mine[axis], theirs[axis])
            for name in self.seen.keys() & other.seen.keys()
            if len(self.seen[name]) == len(other.seen[name])
            for mine, theirs in zip(self.seen[name], other.seen[name], strict=True)
            for axis in mine.keys() & theirs.keys()
            if _are_alike(mine[axis], theirs[axis], other.width)
            # What runs for each expert runs in the order of those that were chosen; the whole
            # model, which has no name, runs once and may choose a column as the last.
            and (len(mine[axis].shape) > 2 or len(self.seen[name]) == 1 or not name)
        ]
        found = [_difference(mine, theirs) for mine, theirs in pairs]
        dtypes = {mine.dtype for mine, _ in pairs} | {
            torch.get_autocast_dtype(kind)
            for kind in ("cpu", "cuda")
            if torch.is_autocast_enabled(kind)
        }
        eps = [torch.finfo(dtype).eps for dtype in dtypes]
        # Far above rounding, which is a few eps, and far below any difference at its source.
        # What is in float64 may have been narrower inside.
        limit = max(_LEAST, math.sqrt(max(eps, default=0)))
        return bool(found) and bool(torch.stack(found).max() > limit)


class Tracer:
    """Hands what modules give to the trace of the pass that is running.

    One pass runs at a time, if need be on a thread of its own.
    """

    def __init__(self) -> None:
        self._current: Trace | None = None

    @contextmanager
    def into(self, trace: Trace | None) -> Iterator[None]:
        """Let a trace see what runs inside the block.

        Args:
            trace: The trace; ``None`` for nobody.

        Yields:
            None.
        """
        before, self._current = self._current, trace
        try:
            yield
        finally:
            self._current = before

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Watch a model; modules of torch itself show in what they are part of.

        Args:
            model: The model.

        Yields:
            None. All hooks are gone when the block ends.
        """
        parts = {
            name: module
            for name, module in model.named_modules()
            if not type(module).__module__.startswith("torch.nn")
        }
        with after_calls(parts, self._see):
            yield

    def _see(self, name: str, output: Any) -> None:
        if self._current is not None:
            self._current.see(name, output)


def _are_alike(mine: Seen, theirs: Seen, width: int) -> bool:
    """Tell whether two tensors differ in their number of tokens at most."""
    shape = list(mine.shape)
    if mine.axis is not None:
        shape[mine.axis] = width
    return tuple(shape) == theirs.shape


def _difference(mine: Seen, theirs: Seen) -> Tensor:
    """How far rows are apart, against their own size or that of the mean row."""
    if not mine.sizes.numel():
        return mine.sizes.new_zeros(()).double().cpu()
    sizes = torch.maximum(mine.sizes, mine.sizes.mean())
    apart = (mine.numbers - theirs.numbers).norm(dim=1)
    return torch.where(apart == 0, 0, apart / sizes).max().double().cpu()


@cache
def _projection(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draw what squared norms are kept by, on average; once for each number of features."""
    generator = torch.Generator().manual_seed(n)
    drawn = torch.randn(n, _N_NUMBERS, generator=generator, dtype=torch.float64)
    return (drawn / math.sqrt(_N_NUMBERS)).to(device, dtype)


def _tensors_of(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if (
            output.is_floating_point()
            and output.dim()
            and output.numel()
            and not output.is_meta
        ):
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors_of(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors_of(value)


def _axes(shape: torch.Size, width: int) -> list[int | None]:
    """Say where a tensor of one example may have its tokens.

    A table of tokens by tokens has none. Neither have the rows that an expert was sent, which
    may be as many.

    Returns:
        The axis; ``None`` stands for all of the tensor. Nothing where it is not compared.
    """
    if len(shape) == 4:
        where = [axis for axis in (2, 1) if shape[axis] == width]
        return [where[0]] if len(where) == 1 and shape[3] != width else []
    if len(shape) < 3:
        return [None] if shape[0] == 1 else []
    if shape[1] == width:
        return [1]
    return [0] if shape[0] == width and shape[1] == 1 else [None]
