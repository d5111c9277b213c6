"""What is made of a tensor, made once while the same one comes again and again.

Query, key and value see one input, as do the two halves of a gated layer; and a module often
returns what its last part has returned.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

Made = TypeVar("Made")


class LastInput(Generic[Made]):
    """Remembers the last tensor and what was made of it."""

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Made] | None = None

    def get(self, x: Tensor, make: Callable[[], Made]) -> Made:
        """Give what was made of a tensor, or make it.

        Args:
            x: The tensor.
            make: Makes it, if the last tensor was another one or has changed since.

        Returns:
            What was made.
        """
        if x.is_inference():  # torch does not count what changes it
            return make()
        version = x._version  # noqa: SLF001 - how autograd itself tells in-place changes
        last = self._last
        if last is None or last[1] != version or not is_same_memory(last[0], x):
            last = self._last = (x, version, make())
        return last[2]

    def forget(self) -> None:
        """Let go of the last tensor."""
        self._last = None


def is_same_memory(left: Tensor, right: Tensor) -> bool:
    """See whether two tensors are the same view; a detached one is always a new object.

    Returns:
        Whether they share memory, shape and type.
    """
    return (
        left.data_ptr() == right.data_ptr()
        and left.shape == right.shape
        and left.stride() == right.stride()
        and left.dtype == right.dtype
    )
