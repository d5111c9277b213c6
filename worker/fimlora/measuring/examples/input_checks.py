"""Refuse batches that a model has no room for, by name, before they reach an index."""

from typing import Any

from torch import Tensor

from fimlora.errors import InvalidOption
from fimlora.measuring.examples.batches import Batch, ByExample, count_examples, count_tokens
from fimlora.model.input_limits import InputLimits

# What is beside the tokens of a batch, by the beginnings of its names.
_MEDIA = ("pixel_", "image_", "video_", "input_features", "feature_attention_mask")
_ALONE = "give a list with one tensor for each example, or batches of one example each"


def check_inputs(batch: Batch, limits: InputLimits, where: str) -> None:
    """Look at token ids and at the number of tokens.

    Args:
        batch: The batch. Ids that are not on the CPU are not looked at, as that would wait
            for the device.
        limits: What the model can be given.
        where: What to call the batch in an error.

    Raises:
        InvalidOption: An id is outside of the model's embedding, there are more tokens
            than the model has positions, or nobody knows which image is whose.
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
    _check_lists(batch, where)
    _check_media(batch, ids, limits, where)
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


def _check_lists(batch: Batch, where: str) -> None:
    """See that lists have one tensor for each example.

    Raises:
        InvalidOption: One has not.
    """
    n = count_examples(batch)
    for name, value in batch.items():
        if isinstance(value, ByExample) and len(value) != n:
            raise InvalidOption(
                f"{name} of {where} is a list of {len(value)} tensors for {n} examples: give one for "
                "each, or None for one that has none"
            )


def _check_media(batch: Batch, ids: Tensor | None, limits: InputLimits, where: str) -> None:
    """See that images and sounds have the axis of the examples: they are taken apart along it.

    Raises:
        InvalidOption: They have another one, such as that of all patches; or some examples have
            more of an image than others, whose gradients would be mistaken for one another's.
    """
    n = count_examples(batch)
    media = {
        name: value
        for name, value in batch.items()
        if isinstance(value, Tensor) and value.dim() > 0 and name.startswith(_MEDIA)
    }
    if n < 2 or not media:
        return
    for name, value in media.items():
        if value.shape[0] != n:
            raise InvalidOption(
                f"{name} of {where} has {value.shape[0]} rows for {n} examples: which are whose "
                f"is not known; {_ALONE}"
            )
    if ids is None or limits.image_token is None or "pixel_values" not in media:
        return
    counts = (ids == limits.image_token).sum(1)
    if counts.min() != counts.max() or not counts.min():
        raise InvalidOption(
            f"the examples of {where} have {counts.tolist()} places for parts of images: an axis "
            f"of images is that of examples only where each has as many; {_ALONE}"
        )


def _on_cpu(value: Any) -> Tensor | None:
    known = isinstance(value, Tensor) and value.device.type == "cpu" and value.numel()
    return value if known else None
