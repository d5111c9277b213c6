"""The rows of both sides as examples, made by the code that makes them for calibration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fimlora_contract.evaluations import FEWEST_HELD_OUT
from fimlora_worker.errors import DatasetEmpty
from fimlora_worker.evaluation.settings import EvaluationSettings
from fimlora_worker.evaluation.split import Split
from fimlora_worker.inputs.calibration_data import draw
from fimlora_worker.inputs.examples import Encoder, Example


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class EvaluationData:
    """What every run trains and is tested on.

    Attributes:
        train: Examples to train on; a run sees each of them about equally often.
        held_out: Examples to test on.
        n_dropped: Rows that left nothing to predict, on both sides.
        n_equal_texts: As in `Split`.
        n_unknown_classes: As in `Split`.
    """

    train: Sequence[Example]
    held_out: Sequence[Example]
    n_dropped: int = 0
    n_equal_texts: int = 0
    n_unknown_classes: int = 0


def encode(
    split: Split,
    encoder: Encoder,
    settings: EvaluationSettings,
    *,
    on_example: Callable[[], None] = _nothing,
) -> EvaluationData:
    """Make examples of as many rows as a run can see.

    Args:
        split: The rows.
        encoder: Makes examples of them.
        settings: How many are used.
        on_example: Called before each row is made an example.

    Raises:
        DatasetEmpty: The training rows leave nothing to predict, or too few held-out ones do.
    """
    sides = [
        draw(rows, encoder, n_examples=n, seed=settings.split_seed, on_example=on_example)
        for rows, n in (
            (split.train, settings.n_steps * settings.batch_size),
            (split.held_out, split.held_out.n_rows),
        )
    ]
    train, held_out = sides
    if len(held_out.examples) < FEWEST_HELD_OUT:
        raise DatasetEmpty(
            f"of {split.held_out.n_rows} rows to test on {held_out.n_dropped} leave nothing to "
            f"predict within max_length={encoder.max_length}; {len(held_out.examples)} are left, "
            f"and at least {FEWEST_HELD_OUT} are needed: give more rows, or a larger max_length"
        )
    return EvaluationData(
        train=train.examples,
        held_out=held_out.examples,
        n_dropped=train.n_dropped + held_out.n_dropped,
        n_equal_texts=split.n_equal_texts,
        n_unknown_classes=split.n_unknown_classes,
    )


def order_of(n_examples: int, n_wanted: int, *, seed: int) -> list[int]:
    """Numbers of the examples in the order a run sees them: shuffled epochs, one after another.

    It depends on the seed and the counts alone, so that all arms see the same.
    """
    random = np.random.RandomState(seed)
    n_epochs = -(-n_wanted // n_examples)
    epochs = [random.permutation(n_examples) for _ in range(n_epochs)]
    numbers: list[int] = np.concatenate(epochs)[:n_wanted].tolist()
    return numbers
