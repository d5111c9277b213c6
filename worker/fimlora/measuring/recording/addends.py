"""What a sum was made of, kept apart so that it can be added up again in the same order.

Sums of floating-point numbers depend on the order of their parts. A shard of a run that keeps
its parts lets whoever merges shards add up exactly as one run over all batches would have.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

# What stands before the name of a sum where it is what was kept apart, the parts, and which of
# the parts were kept apart.
APART, PARTS, FLAGS = "apart/", "parts/", "flags/"
# A part that is larger is not kept, as those of a matrix of some size.
MOST_BYTES_EACH = 2**20


class Allowance:
    """Memory that the parts of several sums may take together.

    Args:
        n_bytes: So much.
    """

    def __init__(self, n_bytes: int) -> None:
        self._left = n_bytes

    def take(self, n_bytes: int) -> bool:
        """Take some of it, if there is enough left."""
        if n_bytes > self._left:
            return False
        self._left -= n_bytes
        return True

    def give_back(self, n_bytes: int) -> None:
        """Give back what is not needed any more."""
        self._left += n_bytes


class Addends:
    """The parts of one sum, all of them or none.

    Args:
        allowance: Memory that they share with those of other sums.
    """

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._parts: list[tuple[bool, Tensor]] | None = []

    def add(self, part: Tensor, *, is_apart: bool) -> None:
        """Keep a part, or none from now on where they take too much.

        Args:
            part: A copy of it is kept.
            is_apart: Whether it was added to what is kept apart, too.
        """
        if self._parts is None:
            return
        size = part.numel() * part.itemsize
        if size <= MOST_BYTES_EACH and self._allowance.take(size):
            self._parts.append((is_apart, part.clone()))
        else:
            self.give_up()

    def give_up(self) -> None:
        """Keep nothing any more."""
        parts, self._parts = self._parts or (), None
        self._allowance.give_back(sum(part.numel() * part.itemsize for _, part in parts))

    def stacked(self) -> tuple[Tensor, Tensor] | None:
        """Give all parts in one tensor, and which of them are apart; ``None`` if not all are kept."""
        if not self._parts:
            return None
        flags = torch.tensor([is_apart for is_apart, _ in self._parts], dtype=torch.uint8)
        return torch.stack([part for _, part in self._parts]), flags

    def restore(self, parts: Sequence[tuple[bool, Tensor]]) -> None:
        """Take the parts that a run has kept which is gone on with."""
        for is_apart, part in parts:
            self.add(part, is_apart=is_apart)


def in_turn(stacked: Tensor, flags: Tensor) -> Iterator[tuple[bool, Tensor]]:
    """Take apart what `Addends.stacked` gave.

    Args:
        stacked: All parts.
        flags: Which of them are apart.

    Yields:
        Whether a part is apart, and a copy of it.
    """
    for is_apart, part in zip(flags.tolist(), stacked, strict=True):
        yield bool(is_apart), part.clone()


def without_totals(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the sums whose parts are kept.

    Args:
        sums: As a recorder's ``state`` gives them.

    Returns:
        What is needed to add them to others.
    """
    told = set[str]()
    for key in sums:
        before, is_parts, name = key.partition(PARTS)
        if is_parts:
            told |= {f"{before}{name}", f"{before}{APART}{name}"}
    return {key: tensor for key, tensor in sums.items() if key not in told}
