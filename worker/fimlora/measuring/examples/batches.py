"""Cut, move and check calibration batches. The first axis of a batch counts examples.

What has no such axis, as the images of rows that have several of any size, is a list with one
tensor for each example, or ``None`` for one that has none. The model is called with what the list
holds for an example, so that such examples run one at a time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fimlora.errors import InvalidOption

Batch = dict[str, Any]


class ByExample(tuple[Tensor | None, ...]):
    """One tensor for each example of a batch, of whatever shape; ``None`` where it has none."""

    __slots__ = ()


def as_batch(batch: object) -> Batch:
    """Take what the loader gave.

    Args:
        batch: One item of the loader.

    Returns:
        A shallow copy, so that the caller's mapping is never changed.

    Raises:
        InvalidOption: It is not a mapping of names to tensors.
    """
    if not isinstance(batch, Mapping) or not any(isinstance(v, Tensor) for v in batch.values()):
        raise InvalidOption(
            f"a batch must map the model's argument names to tensors, got {type(batch).__name__}"
        )
    return {name: _by_example(value) for name, value in batch.items()}


def _by_example(value: Any) -> Any:
    """Know a list of tensors for what it is; ``None`` is for examples that have none."""
    if not isinstance(value, list | tuple) or not any(isinstance(v, Tensor) for v in value):
        return value
    return ByExample(value) if all(isinstance(v, Tensor | None) for v in value) else value


def count_examples(batch: Batch) -> int:
    """Count the examples of a batch.

    Returns:
        The first axis of the labels, or of the first tensor when there are none.
    """
    tensors = [v for v in batch.values() if isinstance(v, Tensor) and v.dim() > 0]
    labels = batch.get("labels")
    first = labels if isinstance(labels, Tensor) and labels.dim() > 0 else tensors[0]
    return first.shape[0]


def count_tokens(batch: Batch) -> int:
    """Count the tokens of an example of a batch, with padding.

    Returns:
        The second axis of the input ids, or the longest of any tensor when there are none.
    """
    ids = batch.get("input_ids")
    tensors = [ids] if isinstance(ids, Tensor) else batch.values()
    return max(
        (v.shape[1] for v in tensors if isinstance(v, Tensor) and v.dim() > 1), default=1
    )


def runs_alone(batch: Batch) -> bool:
    """Say whether examples of a batch run one at a time.

    Returns:
        Whether it has something that is one tensor for each of them.
    """
    return any(isinstance(value, ByExample) for value in batch.values())


def select(batch: Batch, rows: slice | Tensor, *, n_examples: int) -> Batch:
    """Take some examples of a batch.

    Args:
        batch: The batch.
        rows: Which examples.
        n_examples: Its number of examples; what has another first axis is shared by all.

    Returns:
        A batch of those examples.
    """
    chosen = range(n_examples)[rows] if isinstance(rows, slice) else rows.tolist()
    return {name: _select(value, rows, chosen, n_examples) for name, value in batch.items()}


def _select(value: Any, rows: slice | Tensor, chosen: Sequence[int], n_examples: int) -> Any:
    if isinstance(value, ByExample):
        return ByExample(value[row] for row in chosen)
    if not isinstance(value, Tensor) or not value.dim() or value.shape[0] != n_examples:
        return value
    return value[rows.to(value.device) if isinstance(rows, Tensor) else rows]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch.

    Args:
        batch: The batch; of one example where it has something that is one tensor for each.
        device: Where to.

    Returns:
        What a model is called with: the tensors on the device, without what its example lacks.
    """
    moved: Batch = {}
    for name, value in batch.items():
        if isinstance(value, ByExample):
            assert len(value) == 1, "these run one at a time"
            [value] = value  # noqa: PLW2901
            if value is None:
                continue
        is_tensor = isinstance(value, Tensor)
        moved[name] = value.to(device, non_blocking=True) if is_tensor else value
    return moved
