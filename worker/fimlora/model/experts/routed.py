"""The tokens of one expert, and where they stand in the examples they come from.

Symbols: N examples of T tokens, S tokens of one expert, F features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fimlora.shapes import Float, Int


@dataclass(frozen=True, slots=True)
class Routed:
    """What one expert is given.

    Attributes:
        x: The tokens (S F).
        rows: Which of all tokens they are (S), rising.
        n_rows: How many tokens there are in all.
        is_swapped: Whether the LoRA-A of this expert reads the output's gradient and not x.
    """

    x: Float[Tensor, "S F"]
    rows: Int[Tensor, " S"]
    n_rows: int
    is_swapped: bool = False

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        return self.x.device

    def detach(self) -> "Routed":
        """The same tokens without a graph."""
        return Routed(self.x.detach(), self.rows, self.n_rows, self.is_swapped)


def mixes_examples(x: Tensor | Routed, n_examples: int) -> bool:
    """Tell whether one example's part of an input cannot be told from another's.

    Args:
        x: What a module is given, or one expert.
        n_examples: How many examples are run at once.

    Returns:
        Whether the examples are not its first axis, or in turn in that of all tokens.
    """
    if n_examples == 1:
        return False
    if isinstance(x, Routed):
        return x.n_rows % n_examples != 0
    return x.shape[0] != n_examples


@dataclass(frozen=True, slots=True)
class Slots:
    """Where tokens of an expert stand once each example has an axis of its own.

    Attributes:
        at: The place of each token (S) among N * W.
        shape: A tensor without numbers, of N examples by W tokens of the longest.
    """

    at: Int[Tensor, " S"]
    shape: Tensor

    @classmethod
    def of(cls, routed: Routed, n_examples: int) -> "Slots":
        """Find them.

        Args:
            routed: The tokens.
            n_examples: How many examples they come from.

        Returns:
            The places.
        """
        rows = routed.rows
        if n_examples == 1:
            return cls(
                torch.arange(len(rows), device=rows.device), rows.new_empty(1, len(rows), 0)
            )
        example = rows // (routed.n_rows // n_examples)
        counts = torch.bincount(example, minlength=n_examples)
        starts = counts.cumsum(0) - counts
        width = int(counts.max())
        position = torch.arange(len(rows), device=rows.device) - starts[example]
        return cls(example * width + position, rows.new_empty(n_examples, width, 0))

    def spread(self, tokens: Float[Tensor, "S F"]) -> Float[Tensor, "N W F"]:
        """Give every example its tokens, and zeros behind them.

        Args:
            tokens: One row per token.

        Returns:
            The same numbers by example.
        """
        n_examples, width = self.shape.shape[:2]
        if n_examples == 1:
            return tokens[None]
        spread = tokens.new_zeros(n_examples * width, tokens.shape[-1])
        return spread.index_copy_(0, self.at, tokens).view(n_examples, width, -1)
