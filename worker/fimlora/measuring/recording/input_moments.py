"""Second moments of what goes into a module, over the tokens that are not padding.

Symbols: N examples, T tokens of each, I input features.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import Quantity, SeenCall, as_array, present
from fimlora.numerics.last_input import LastInput
from fimlora.numerics.products import widen
from fimlora.plan import TargetModule
from fimlora.shapes import Float
from fimlora.statistics.statistics import Groups


class InputMoments(Quantity):
    """Second moments of the features of every module's input.

    Padding does not count. An input that the mask does not fit, such as one vector per
    example or a table of positions, counts as a whole.

    Args:
        modules: The target modules.
    """

    def __init__(self, modules: Sequence[TargetModule]) -> None:
        self._squares = {module.name: PendingSum() for module in modules}  # (I)
        self._n_tokens = {module.name: PendingSum() for module in modules}
        self._last = LastInput[tuple[Tensor, Tensor]]()

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        """Add the squares of the tokens that are not padding."""
        for (x,), _ in calls:
            self._add_input(name, x)

    def _add_input(self, name: str, x: Float[Tensor, "N T I"]) -> None:
        squares, n_tokens = self._last.get(x, lambda: self._sums_of(x))
        self._squares[name].stage(squares.clone())  # each module adds to its own
        self._n_tokens[name].stage(n_tokens.clone())

    def _sums_of(self, x: Float[Tensor, "N T I"]) -> tuple[Tensor, Tensor]:
        """Sum an input once for all modules that are called on it in turn."""
        token_mask = self.at_hand.token_mask
        squares, counted = widen(x).square(), x.new_ones(x.shape[:2], dtype=torch.bool)
        if token_mask is not None and token_mask.shape == counted.shape:
            counted = token_mask.to(x.device) != 0
        squares = squares.mul_(counted[:, :, None]).sum(dim=(0, 1), dtype=torch.float64)
        return squares, counted.sum()

    def discard(self) -> None:
        """Forget what a pass that was not committed has added."""
        super().discard()
        self._last.forget()

    def commit(self) -> None:
        """Add what a finished pass has given."""
        super().commit()
        self._last.forget()

    def mean_squares(self, name: str) -> Float[Tensor, " I"]:
        """Give the mean squared input of a module so far.

        Args:
            name: The module's name.

        Returns:
            The mean over the tokens that count.
        """
        squares, n_tokens = present(self._squares[name].total), self._n_tokens[name].total
        # Rounding can leave a vanishing part of a run just below zero.
        return squares.clamp_min(0) / present(n_tokens)

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        """Give squares and numbers of tokens."""
        for name, squares in self._squares.items():
            yield f"moments 0/{name}", squares
            yield f"moments 1/{name}", self._n_tokens[name]

    def results(self, n_examples: int) -> Groups:  # noqa: ARG002 - sums, not means
        """Give the sum of squares (I) and the number of tokens (1) per module."""
        names = [name for name, squares in self._squares.items() if squares.total is not None]
        counts = {name: as_array(self._n_tokens[name].total).reshape(-1) for name in names}
        return {
            "input_squares": {name: as_array(self._squares[name].total) for name in names},
            "token_counts": counts,
        }
