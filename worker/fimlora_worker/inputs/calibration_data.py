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


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Drawn:
    """The examples of a job.

    Attributes:
        examples: In the order they are used.
        n_dropped: Rows that were drawn for them but left nothing to predict.
        further: Examples of the rows that come next in that order.
    """

    examples: Sequence[Example]
    n_dropped: int
    further: Sequence[Example] = ()


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
    n_dropped, start, n_wanted = 0, 0, n_examples + n_further
    while len(examples) < n_wanted and start < rows.n_rows:
        # As many as were taken before, at least: a file may be read anew for each time.
        n_rows = max(n_wanted - len(examples), start, FEWEST_AT_ONCE)
        numbers = order[start : start + n_rows].tolist()
        for where, row in rows.read(numbers, used_columns(encoder.fields)):
            if len(examples) == n_wanted:
                break
            on_example()
            example = _encode(row, where, encoder)
            n_dropped += example is None and len(examples) < n_examples
            if example is not None:
                examples.append(example)
        start += n_rows
    if not examples:
        raise DatasetEmpty(
            f"none of the {rows.n_rows} rows leaves anything to predict within "
            f"max_length={encoder.max_length}"
        )
    return Drawn(examples[:n_examples], n_dropped, examples[n_examples:])


def check_token_ids(examples: Sequence[Example], tokenizer: Any, n_ids: int | None) -> None:
    """See that the model has an embedding of every token.

    Raises:
        UnsupportedArchitecture: Names a token that it has none of.
    """
    largest = max(max(example["input_ids"]) for example in examples)
    if n_ids is not None and largest >= n_ids:
        raise UnsupportedArchitecture(
            f"the tokenizer gives token id {largest} "
            f"({tokenizer.convert_ids_to_tokens(largest)!r}), but the model embeds ids from 0 to "
            f"{n_ids - 1}: register the model with the tokenizer it was trained with, or "
            "resize its embeddings"
        )


def _encode(row: Row, where: str, encoder: Encoder) -> Example | None:
    try:
        check_row(row, encoder.fields, where=where)
    except ColumnError as error:
        raise DatasetSchema(str(error)) from error
    with named_as(f"{where}: the model's tokenizer fails"):
        return encoder.encode(row, where=where)


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
        self._fill = {"input_ids": pad_id, "labels": IGNORED}

    @property
    def width(self) -> int:
        """Tokens of the longest example."""
        return max(len(example["input_ids"]) for example in self._examples)

    @property
    def largest(self) -> int:
        """Examples of the largest batch."""
        return min(self._batch_size, len(self._examples))

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self._examples) / self._batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Pad one batch after the other."""
        for start in range(0, len(self._examples), self._batch_size):
            yield self._pad(self._examples[start : start + self._batch_size])

    def _pad(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        width = max(len(example["input_ids"]) for example in batch)
        return {
            name: torch.tensor([self._widen(example[name], name, width) for example in batch])
            for name in batch[0]
        }

    def _widen(self, value: Any, name: str, width: int) -> Any:
        if not isinstance(value, list):  # a class or a number
            return value
        return value + [self._fill.get(name, 0)] * (width - len(value))
