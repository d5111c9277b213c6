"""Second moments of what goes into a module, over the tokens that are not padding.

Symbols: N examples, T tokens of each, I input features.
"""

import torch
from torch import Tensor

from fimlora.measuring.recording.pending_sum import StagedSum
from fimlora.numerics.products import widen
from fimlora.shapes import Float


class InputMoments:
    """Second moments of the features of one module's input.

    Padding does not count. An input that the mask does not fit, such as one vector per
    example or a table of positions, counts as a whole.
    """

    def __init__(self) -> None:
        self.squares = StagedSum()  # (I)
        self.n_tokens = StagedSum()

    def add(self, x: Float[Tensor, "N T I"], token_mask: Tensor | None) -> None:
        """Add the squares of the tokens that are not padding."""
        squares, counted = widen(x).square(), x.new_ones(x.shape[:2], dtype=torch.bool)
        if token_mask is not None and token_mask.shape == counted.shape:
            counted = token_mask.to(x.device) != 0
        squares = squares.mul_(counted[:, :, None]).sum(dim=(0, 1), dtype=torch.float64)
        self.squares.stage(squares)
        self.n_tokens.stage(counted.sum())

    def sums(self) -> tuple[StagedSum, ...]:
        """Give the sums it is made of.

        Returns:
            Squares and number of tokens.
        """
        return self.squares, self.n_tokens
