"""A sum that takes nothing from a pass that does not get to its end.

Memory may run out anywhere in a pass, when some modules have given their part and others
have not. So what a pass gives is staged beside the sum, and added once the pass is over.
"""

import torch
from torch import Tensor

from fimlora.measuring.recording.addends import Addends, in_turn


class PendingSum:
    """A sum of tensors, added to by one pass after the other.

    Attributes:
        total: What all finished passes have added up to; ``None`` before the first.
        apart: What those of them have added up to that were to be kept apart besides.
        keeps_apart: Whether what is committed now is kept apart, too.
        addends: What it was made of, where that is kept.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.apart: Tensor | None = None
        self.keeps_apart = False
        self.addends: Addends | None = None
        self._staged: Tensor | None = None
        self._spare: Tensor | None = None  # where two sums begin with one tensor

    def stage(self, added: Tensor) -> None:
        """Take a part of the pass at hand.

        Args:
            added: A tensor that nobody else writes to.
        """
        if self._staged is None:
            self._begin(added)
        else:
            self._staged.add_(added)

    def stage_product(self, left: Tensor, right: Tensor) -> None:
        """Take a matrix product, without a second one beside it.

        Args:
            left: The left factor.
            right: The right factor.
        """
        if self._staged is None:
            self._begin(left @ right)
        else:
            self._staged.addmm_(left, right)

    def commit(self) -> None:
        """Add what was staged; this needs no memory, so it cannot fail half-way."""
        staged, self._staged = self._staged, None
        if staged is None:
            return
        if self.addends is not None:
            self.addends.add(staged, is_apart=self.keeps_apart)
        if self.total is None:
            self.total = staged
            staged = staged if self._spare is None else self._spare.copy_(staged)
            self._spare = None
        else:
            self.total.add_(staged)
        if self.keeps_apart:
            self.apart = staged if self.apart is None else self.apart.add_(staged)

    def extend(self, total: Tensor | None, apart: Tensor | None) -> None:
        """Add another sum, whose parts are not known.

        Args:
            total: The sum.
            apart: What of it was kept apart.
        """
        self.total, self.apart = _added(self.total, total), _added(self.apart, apart)

    def extend_by_parts(self, stacked: Tensor, flags: Tensor) -> None:
        """Add another sum part by part, as they were added there.

        Args:
            stacked: Its parts, as `fimlora.measuring.recording.addends` keeps them.
            flags: Which of them were kept apart.
        """
        for self.keeps_apart, part in in_turn(stacked, flags):
            self.stage(part)
            self.commit()

    def discard(self) -> None:
        """Forget what was staged."""
        self._staged = self._spare = None

    def take(self) -> Tensor | None:
        """Give the total away, and begin anew.

        Returns:
            The total.
        """
        total, self.total = self.total, None
        return total

    def _begin(self, first: Tensor) -> None:
        self._staged = first
        if self.keeps_apart and self.total is None:
            self._spare = torch.empty_like(first)


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if other is None:
        return one
    return other.clone() if one is None else one.add_(other)
