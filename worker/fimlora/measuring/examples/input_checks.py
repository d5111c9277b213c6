"""Refuse batches that a model has no room for, by name, before they reach an index."""

from typing import Any

from torch import Tensor

from fimlora.errors import InvalidOption
from fimlora.measuring.examples.batches import Batch, count_tokens
from fimlora.model.input_limits import InputLimits


def check_inputs(batch: Batch, limits: InputLimits, where: str) -> None:
    """Look at token ids and at the number of tokens.

    Args:
        batch: The batch. Ids that are not on the CPU are not looked at, as that would wait
            for the device.
        limits: What the model can be given.
        where: What to call the batch in an error.

    Raises:
        InvalidOption: An id is outside of the model's embedding, or there are more tokens
            than the model has positions.
    """
    ids = _on_cpu(batch.get("input_ids"))
    if ids is not None and limits.n_ids is not None:
        wrong = ids[(ids < 0) | (ids >= limits.n_ids)]
        if wrong.numel():
            raise InvalidOption(
                f"token id {wrong[0].item()} in {where} is outside of the model's embedding, "
                f"which has ids from 0 to {limits.n_ids - 1}; use the model's own tokenizer, "
                "and pad with one of its tokens"
            )
    if limits.n_positions is None or (
        "input_ids" not in batch and "inputs_embeds" not in batch
    ):
        return
    given = _on_cpu(batch.get("position_ids"))
    n = count_tokens(batch) if given is None else int(given.max()) + 1
    if n > limits.n_positions:
        raise InvalidOption(
            f"{where} has {n} tokens per example, with padding; the model has "
            f"{limits.n_positions} positions: cut examples to that length"
        )


def _on_cpu(value: Any) -> Tensor | None:
    known = isinstance(value, Tensor) and value.device.type == "cpu" and value.numel()
    return value if known else None
