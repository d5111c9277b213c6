"""Draw the calibration examples of a job and hand them out in padded batches."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fimlora_jobs.datasets.columns import ColumnError, check_row, used_columns
from fimlora_jobs.datasets.rows import Row
from fimlora_jobs.datasets.table import Rows
from fimlora_worker.errors import DatasetEmpty, DatasetSchema, UnsupportedArchitecture
from fimlora_worker.inputs.examples import Encoder, Example
from fimlora_worker.inputs.model_faults import named_as
from fimlora_worker.inputs.token_spans import IGNORED

FEWEST_AT_ONCE = 16
# Pixels to a side of what one position of a tower sees, at least.
SMALLEST_PATCH = 14
# Of images and sounds of all examples, as the model takes them.
MOST_MEDIA_BYTES = 4 << 30


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Drawn:
    """The examples of a job.

    Attributes:
        examples: In the order they are used.
        n_dropped: Rows that were drawn for them but left nothing to predict.
        further: Examples of the rows that come next in that order.
        dropped_before: For each example, how many of these rows came before it.
    """

    examples: Sequence[Example]
    n_dropped: int
    further: Sequence[Example] = ()
    dropped_before: Sequence[int] = ()

    def first(self, n: int) -> "Drawn":
        """What would have been drawn, had no more than so many examples been wanted."""
        if n >= len(self.examples):
            return self
        before = self.dropped_before[:n]
        return Drawn(self.examples[:n], before[-1], dropped_before=before)


def draw(
    rows: Rows,
    encoder: Encoder,
    *,
    n_examples: int,
    seed: int,
    n_further: int = 0,
    on_example: Callable[[], None] = _nothing,
) -> Drawn:
    """Take rows in an order that depends on the seed alone, until there are enough.

    Args:
        rows: The dataset.
        encoder: Makes examples of them.
        n_examples: How many are wanted.
        seed: Decides the order.
        n_further: How many are wanted besides, of the rows that follow.
        on_example: Called before each row is made an example, which may take long.

    Raises:
        DatasetSchema: A drawn row lacks a column; the message names the row.
        DatasetEmpty: No row left anything to predict.
    """
    # The stream of RandomState is frozen for ever, that of newer generators is not.
    order = np.random.RandomState(seed).permutation(rows.n_rows)
    examples: list[Example] = []
    dropped_before: list[int] = []
    n_dropped, start, n_wanted, n_bytes = 0, 0, n_examples + n_further, 0
    while len(examples) < n_wanted and start < rows.n_rows:
        # As many as were taken before, at least: a file may be read anew for each time.
        n_rows = max(n_wanted - len(examples), start, FEWEST_AT_ONCE)
        numbers = order[start : start + n_rows].tolist()
        read = rows.read(numbers, used_columns(encoder.fields))
        for where, row in read:
            if len(examples) == n_wanted:
                break
            on_example()
            example = _encode(row, where, encoder)
            n_dropped += example is None and len(examples) < n_examples
            if example is not None:
                n_bytes += sum(v.nbytes for v in example.values() if isinstance(v, Tensor))
                if n_bytes > MOST_MEDIA_BYTES:
                    raise DatasetSchema(
                        f"the images and sounds of {len(examples)} of {n_wanted} examples take more "
                        f"than {MOST_MEDIA_BYTES >> 30} GiB as the model takes them: give smaller "
                        "ones, or fewer examples (n_batches, batch_size)"
                    )
                examples.append(example)
                dropped_before.append(n_dropped)
        start += len(read)
        del read  # or two readings of large rows would be in memory
    if not examples:
        raise DatasetEmpty(
            f"none of the {rows.n_rows} rows leaves anything to predict within "
            f"max_length={encoder.max_length}"
        )
    wanted, further = examples[:n_examples], examples[n_examples:]
    return Drawn(wanted, n_dropped, further, dropped_before[:n_examples])


def check_token_ids(examples: Sequence[Example], tokenizer: Any, n_ids: int | None) -> None:
    """See that the model has an embedding of every token.

    Raises:
        UnsupportedArchitecture: Names a token that it has none of.
    """
    largest = max(max(_ids(example)) for example in examples)
    if n_ids is not None and largest >= n_ids:
        raise UnsupportedArchitecture(
            f"the tokenizer gives token id {largest} "
            f"({tokenizer.convert_ids_to_tokens(largest)!r}), but the model embeds ids from 0 to "
            f"{n_ids - 1}: register the model with the tokenizer it was trained with, or "
            "resize its embeddings"
        )


def _ids(example: Example) -> list[int]:
    """What is read, and what is to be written where that is another sequence."""
    labels = example["labels"]
    return [*example["input_ids"], *(labels if isinstance(labels, list) else ())]


def _encode(row: Row, where: str, encoder: Encoder) -> Example | None:
    try:
        beside = encoder.media.beside if encoder.media is not None else None
        media = check_row(row, encoder.fields, where=where, beside=beside)
    except ColumnError as error:
        raise DatasetSchema(str(error)) from error
    if media and encoder.media is None:
        raise DatasetSchema(
            f"{where} has an {media[0][0]}, and the first rows have none: begin with a row that has, "
            "or leave the column out by an empty name (--column images=)"
        )
    with named_as(f"{where}: the model's tokenizer fails"):
        return encoder.encode(row, where=where)


def _width(example: Example) -> int:
    """Positions of the longest sequence of an example, and those of what it sees and hears."""
    tokens = max(len(value) for value in example.values() if isinstance(value, list))
    return tokens + sum(_n_patches(v) for v in example.values() if isinstance(v, Tensor))


def _n_patches(media: Tensor) -> int:
    """Positions in a tower at most: rows of patches, or patches of images that are whole."""
    if media.dim() < 4:
        return media.shape[0] if media.dim() == 2 else media.shape[-1] * (media.dim() == 3)
    height, width = media.shape[-2:]
    n_images = media.shape[:-3].numel()
    return n_images * -(-height // SMALLEST_PATCH) * -(-width // SMALLEST_PATCH)


class PaddedBatches:
    """Batches of examples, padded on the right to the longest of each batch.

    Args:
        examples: All examples, in order.
        batch_size: Examples per batch; the last one may have fewer.
        pad_id: Token that fills up ``input_ids``.
    """

    def __init__(self, examples: Sequence[Example], *, batch_size: int, pad_id: int) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._pad_id = pad_id
        self._fill = {"input_ids": pad_id, "labels": IGNORED}

    def part(self, start: int, stop: int) -> "PaddedBatches":
        """Some of these batches, from one up to another that is not among them."""
        first, last = start * self._batch_size, stop * self._batch_size
        return PaddedBatches(
            self._examples[first:last], batch_size=self._batch_size, pad_id=self._pad_id
        )

    def n_examples(self, n_batches: int) -> int:
        """Examples of the first so many batches."""
        return min(n_batches * self._batch_size, len(self._examples))

    @property
    def width(self) -> int:
        """Tokens of the longest sequence."""
        return max(map(_width, self._examples))

    @property
    def largest(self) -> int:
        """Examples of the largest batch."""
        return min(self._batch_size, len(self._examples))

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self._examples) / self._batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Pad one batch after the other."""
        for start in range(0, len(self._examples), self._batch_size):
            yield self._pad(self._examples[start : start + self._batch_size])

    def _pad(self, batch: Sequence[Example]) -> dict[str, Any]:
        names = dict.fromkeys(name for example in batch for name in example)
        return {
            name: self._join([example.get(name) for example in batch], name) for name in names
        }

    def _join(self, values: list[Any], name: str) -> Any:
        """One tensor, or of images and sounds a list of one for each example."""
        if any(isinstance(value, Tensor) for value in values):
            return values
        return torch.tensor(self._widen(values, name))

    def _widen(self, values: list[Any], name: str) -> list[Any]:
        if not isinstance(values[0], list):  # a class or a number
            return values
        width, filling = max(map(len, values)), self._fill.get(name, 0)
        return [value + [filling] * (width - len(value)) for value in values]


class HeadBatches(PaddedBatches):
    """What a head is fitted on, the longest examples first so that little is padded.

    Args:
        further: Examples that are not measured.
        measured: Examples that are.
        batch_size: Examples per batch.
        pad_id: Token that fills up ``input_ids``.
    """

    def __init__(
        self,
        further: Sequence[Example],
        measured: Sequence[Example] = (),
        *,
        batch_size: int,
        pad_id: int,
    ) -> None:
        self.n_measured = len(measured)
        examples = sorted([*further, *measured], key=lambda example: -len(example["input_ids"]))
        super().__init__(examples, batch_size=batch_size, pad_id=pad_id)
