"""A sum that takes nothing from a pass that does not get to its end.

Memory may run out anywhere in a pass, when some modules have given their part and others
have not. So what a pass gives is staged beside the sum, and added once the pass is over.
"""

from torch import Tensor


class PendingSum:
    """A sum of tensors, added to by one pass after the other.

    Attributes:
        total: What all finished passes have added up to; ``None`` before the first.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self._staged: Tensor | None = None

    def stage(self, added: Tensor) -> None:
        """Take a part of the pass at hand.

        Args:
            added: A tensor that nobody else writes to.
        """
        self._staged = added if self._staged is None else self._staged.add_(added)

    def stage_product(self, left: Tensor, right: Tensor) -> None:
        """Take a matrix product, without a second one beside it.

        Args:
            left: The left factor.
            right: The right factor.
        """
        if self._staged is None:
            self._staged = left @ right
        else:
            self._staged.addmm_(left, right)

    def commit(self) -> None:
        """Add what was staged; this needs no memory, so it cannot fail half-way."""
        if self._staged is not None:
            self.total = self._staged if self.total is None else self.total.add_(self._staged)
        self._staged = None

    def discard(self) -> None:
        """Forget what was staged."""
        self._staged = None

    def take(self) -> Tensor | None:
        """Give the total away, and begin anew.

        Returns:
            The total.
        """
        total, self.total = self.total, None
        return total
