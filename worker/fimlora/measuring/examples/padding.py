"""Where the padding of a batch is, and how parts of it do without.

An example's *span* is from its first token to the end of its last one. What lies outside
changes no gradient, and costs as much as a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fimlora.measuring.examples.batches import Batch
from fimlora.measuring.examples.losses import IGNORED

# Tensors of one row per example and one column per token.
_SEQUENCES = frozenset(
    {"input_ids", "inputs_embeds", "attention_mask", "position_ids"}
    | {"token_type_ids", "mm_token_type_ids"}
)
# What a pass costs besides its tokens, in tokens: on a CPU, where small ones cost little, and
# elsewhere.
PASS_ON_CPU, PASS_ON_DEVICE = 128, 2048


@dataclass(frozen=True)
class Padding:
    """What of a batch's columns its examples use.

    Attributes:
        spans: First column and end of each example.
        names: The tensors that have a column per token.
        n_tokens: Columns of the batch.
    """

    spans: tuple[tuple[int, int], ...]
    names: frozenset[str]
    n_tokens: int

    def by_length(self) -> list[int]:
        """Order the examples, the longest first; equal ones stay in order."""
        return sorted(range(len(self.spans)), key=lambda i: -_length(self.spans[i]))

    def of(self, rows: Sequence[int]) -> "Padding":
        """Take some examples.

        Args:
            rows: Which.

        Returns:
            The padding of these alone.
        """
        return replace(self, spans=tuple(self.spans[row] for row in rows))

    def cut(self, batch: Batch) -> Batch:
        """Leave out the columns that none of the examples uses.

        Args:
            batch: A batch of these examples.

        Returns:
            The same tensors where all columns are used.
        """
        start, stop = min(s for s, _ in self.spans), max(e for _, e in self.spans)
        if (start, stop) == (0, self.n_tokens):
            return batch
        return batch | {name: batch[name][:, start:stop] for name in self.names}

    def count_alike(self, *, pass_tokens: int) -> int:
        """Count the examples that make the first of the cheapest micro-batches.

        A pass costs its examples times the longest of them, and something for itself. The
        examples are to be in order of their length.

        Args:
            pass_tokens: What a pass costs besides its tokens, in tokens.

        Returns:
            At least one; all of them unless the others are much shorter.
        """
        lengths = [*map(_length, self.spans)]
        # Examples of one length stay together, so these are the places to cut at.
        starts = [i for i, n in enumerate(lengths) if not i or n != lengths[i - 1]]
        ends = [*starts[1:], len(lengths)]
        # From the last one back: what all from here on cost, and where the first pass ends.
        best = {len(lengths): (0, 0)}
        for k in reversed(range(len(starts))):
            start = starts[k]
            best[start] = min(
                ((end - start) * lengths[start] + pass_tokens + best[end][0], -end)
                for end in ends[k:]
            )
        return -best[0][1]


def find_padding(batch: Batch, *, labels_by_token: bool) -> Padding | None:
    """Find out what of each example is padding.

    What is before the first token stays where the batch gives no position ids, as the model
    counts columns then; where it predicts a class, which may be from column 0; and where the
    first token has a label, which is predicted from the padding before it.

    Args:
        batch: A batch.
        labels_by_token: Whether labels have a column per token.

    Returns:
        The padding; ``None`` where it is not certain what may be cut.
    """
    mask, names = batch.get("attention_mask"), {*_SEQUENCES}
    tensors = {n: t for n, t in batch.items() if isinstance(t, Tensor) and t.dim() >= 2}
    if labels_by_token:
        names.add("labels")
    else:
        tensors.pop("labels", None)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or not tensors.keys() <= names:
        return None
    if any(tensor.shape[:2] != mask.shape for tensor in tensors.values()):
        return None
    is_token = (mask != 0).cpu()
    is_label = torch.zeros_like(is_token)
    if labels_by_token:
        is_label = (batch["labels"] != IGNORED).cpu()
    may_cut_start = labels_by_token and "position_ids" in batch
    spans = [
        _span(*pair, may_cut_start=may_cut_start)
        for pair in zip(is_token, is_label, strict=True)
    ]
    return Padding(tuple(spans), frozenset(tensors), mask.shape[1])


def _span(is_token: Tensor, is_label: Tensor, *, may_cut_start: bool) -> tuple[int, int]:
    columns = (is_token | is_label).nonzero()[:, 0].tolist() or [0, len(is_token) - 1]
    start = columns[0] if may_cut_start and not is_label[columns[0]] else 0
    return start, columns[-1] + 1


def _length(span: tuple[int, int]) -> int:
    return span[1] - span[0]
