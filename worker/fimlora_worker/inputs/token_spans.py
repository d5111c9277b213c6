"""From marked characters of a text to labelled tokens.

A token is labelled if any of its characters is marked: one that reaches over the edge of what
is learned cannot be predicted in halves, and TRL counts it in as well. Only where nothing but
white space is marked of a token that goes on into what follows, it belongs to what follows.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

IGNORED = -100


def n_common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How long the common beginning of two sequences is."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def label_spans(
    tokenizer: Any,
    text: str,
    spans: Sequence[tuple[int, int]],
    *,
    add_special_tokens: bool = False,
) -> tuple[list[int], list[int]]:
    """Token ids of a text, and the same as labels where they are marked.

    Args:
        tokenizer: A transformers tokenizer.
        text: All of the text.
        spans: Marked characters, in order, none in two spans.
        add_special_tokens: Whether the tokenizer may add what it adds to a text.
    """
    # Longer than the model reads, it is cut afterwards, and no reason to warn.
    options = {"add_special_tokens": add_special_tokens, "verbose": False}
    encoded = tokenizer(text, return_offsets_mapping=tokenizer.is_fast, **options)
    ids = list(encoded["input_ids"])
    if tokenizer.is_fast:
        marks = marks_of(encoded["offset_mapping"], spans, text)
    else:
        marks = _marks_by_prefix(
            ids, spans, lambda n: tokenizer(text[:n], **options)["input_ids"]
        )
    return ids, [token if mark else IGNORED for token, mark in zip(ids, marks, strict=True)]


def marks_of(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], text: str
) -> Iterator[bool]:
    """Which tokens are marked, by the characters that each stands for."""
    return _marks(_extents(offsets), spans, text)


def _marks_by_prefix(
    ids: Sequence[int],
    spans: Sequence[tuple[int, int]],
    tokens_up_to: Callable[[int], list[int]],
) -> Iterator[bool]:
    """The same for tokenizers that do not say which characters a token stands for."""

    def n_tokens(n_chars: int) -> int:
        return n_common(tokens_up_to(n_chars), ids)

    edges = [(n_tokens(start), n_tokens(end)) for start, end in spans]
    return (any(start <= i < end for start, end in edges) for i in range(len(ids)))


def _extents(offsets: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The characters of each token; white space that a tokenizer leaves out goes to the next."""
    last = 0
    for start, end in offsets:
        yield min(start, last), end
        last = max(last, end)


def _marks(
    extents: Iterator[tuple[int, int]], spans: Sequence[tuple[int, int]], text: str
) -> Iterator[bool]:
    remaining = iter(spans)
    span = next(remaining, None)
    for start, end in extents:
        while span is not None and span[1] <= start:
            span = next(remaining, None)
        if span is None or start == end:
            yield False
        else:
            yield span[0] < end and (end <= span[1] or bool(text[start : span[1]].strip()))
