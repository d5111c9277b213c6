"""Cut, move and check calibration batches. The first axis of a batch counts examples."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fimlora.errors import InvalidOption

Batch = dict[str, Any]


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
    return dict(batch)


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


def select(batch: Batch, rows: slice | Tensor, *, n_examples: int) -> Batch:
    """Take some examples of a batch.

    Args:
        batch: The batch.
        rows: Which examples.
        n_examples: Its number of examples; what has another first axis is shared by all.

    Returns:
        A batch of those examples.
    """
    return {
        name: value[rows.to(value.device) if isinstance(rows, Tensor) else rows]
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == n_examples
        else value
        for name, value in batch.items()
    }


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch.

    Returns:
        The batch with its tensors on the device.
    """
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
