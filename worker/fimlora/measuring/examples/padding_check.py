"""Find out on the model at hand whether its padding may be cut, for the widths at hand.

Some models mix in padding whatever its width, some read it next to tokens or in the last
column, some choose their positions or their attention by the width. So the
shortest and the longest example that would be cut are run as they would be and as they came,
and nothing on their way may differ. What is the
same at two widths is taken to be so between them; once a difference is found nothing is cut
any more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fimlora.measuring.examples.batches import select
from fimlora.measuring.examples.examples import Examples
from fimlora.measuring.examples.padding import Padding
from fimlora.measuring.examples.question import Question
from fimlora.measuring.examples.trace import Trace

# Columns of padding beside an example that is one token shorter: enough to be mixed in by
# what pools or convolves a few tokens.
_FEW = 5


@dataclass(frozen=True)
class Pair:
    """The same tokens with two numbers of columns.

    Attributes:
        narrow: Without most of the padding, or all of it.
        wide: With it.
    """

    narrow: Question
    wide: Question

    def differs(self) -> bool:
        """Whether the padding was read; a model that does not run without it needs it."""
        if self.narrow.error is not None:
            return True
        if self.wide.error is not None:
            raise self.wide.error
        assert self.narrow.trace is not None
        assert self.wide.trace is not None
        return self.narrow.trace.differs(self.wide.trace)


@dataclass
class PaddingCheck:
    """What is known of a model's padding.

    Attributes:
        same: Widths between which it changes nothing, as ranges that do not touch.
        is_read: Whether it was read somewhere; nothing is cut from there on.
    """

    same: list[tuple[int, int]] = field(default_factory=list)
    is_read: bool = False

    def ask(self, examples: Examples, run: Callable[[Examples], Tensor]) -> list[Pair]:
        """Say what must be run to know whether these examples may be cut.

        The answer is taken to be that they may, until `learn` is told otherwise.

        Args:
            examples: Labelled examples of a batch.
            run: Runs the model over examples.

        Returns:
            Pairs of passes to compare; none where it is known, or nothing is to cut.
        """
        widths = _widths(examples.padding) if examples.padding is not None else None
        if widths is None or self.is_read or self._knows(widths):
            return []
        wide = self._known_end(widths)
        pairs = _pairs(examples, run, wide=wide, with_another_length=not self.same)
        self._add(widths)
        return pairs

    def learn(self, examples: Examples, pairs: list[Pair]) -> Examples:
        """Take note of what was run.

        Args:
            examples: The examples that were asked about.
            pairs: What `ask` gave for them, answered.

        Returns:
            The examples, with or without padding that may be cut.
        """
        self.is_read = self.is_read or any(pair.differs() for pair in pairs)
        return replace(examples, padding=None) if self.is_read else examples

    def _knows(self, widths: tuple[int, int]) -> bool:
        return any(low <= widths[0] and widths[1] <= high for low, high in self.same)

    def _known_end(self, widths: tuple[int, int]) -> int | None:
        """The width from which on all up to the wider of two is known; ``None`` if none is."""
        ends = (low for low, high in self.same if low <= widths[1] <= high)
        return next(ends, None)

    def _add(self, widths: tuple[int, int]) -> None:
        """Join ranges that have a width in common."""
        low, high = widths
        apart = []
        for other in self.same:
            if other[1] < low or high < other[0]:
                apart.append(other)
            else:
                low, high = min(low, other[0]), max(high, other[1])
        self.same = [*apart, (low, high)]


def _widths(padding: Padding) -> tuple[int, int] | None:
    """The narrowest that examples may be cut to, and what they are cut from."""
    narrowest = min(end - start for start, end in padding.spans)
    return (narrowest, padding.n_tokens) if narrowest < padding.n_tokens else None


def _pairs(
    examples: Examples,
    run: Callable[[Examples], Tensor],
    *,
    wide: int | None,
    with_another_length: bool,
) -> list[Pair]:
    """Pair what is cut with what is not, or, where the rest is known, is only so wide."""
    assert examples.padding is not None
    whole, n_tokens = examples.padding.by_length(), examples.padding.n_tokens
    spans, names = examples.padding.spans, examples.padding.names
    cut = [row for row in whole if spans[row][1] - spans[row][0] < n_tokens]
    pairs = []
    for row in dict.fromkeys([cut[-1]] if wide is not None else [cut[-1], cut[0]]):
        one = Examples(
            select(examples.batch, slice(row, row + 1), n_examples=len(examples)),
            examples.weights[row : row + 1],
        )
        span = [*range(*spans[row])]
        padding = [*range(spans[row][0]), *range(spans[row][1], n_tokens)]
        if wide is not None:
            padding = padding[: wide - len(span)]
        columns = [(span, sorted(span + padding))]
        if with_another_length and len(span) > 1:  # what pools by two sees padding beside one
            columns.append((span[:-1], sorted(span[:-1] + padding[:_FEW])))
            with_another_length = False
        pairs += [
            Pair(*(_question(one, names, chosen, run, narrow) for chosen in (narrow, wide)))
            for narrow, wide in columns
        ]
    return pairs


def _question(
    one: Examples,
    names: frozenset[str],
    columns: list[int],
    run: Callable[[Examples], Tensor],
    narrow: list[int],
) -> Question:
    """Ask for a pass over some columns of an example, and what it makes of its tokens."""
    chosen = torch.tensor(columns)
    batch = one.batch | {n: one.batch[n][:, chosen.to(one.batch[n].device)] for n in names}
    examples = Examples(batch, one.weights)
    mask = one.batch["attention_mask"][0].tolist()
    inside = set(narrow)
    tokens = [i for i, column in enumerate(columns) if column in inside and mask[column]]
    return Question(lambda: run(examples), Trace(len(columns), tokens))
