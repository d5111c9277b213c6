"""What the tests of streamed execution share: models in folders, and "the same statistics"."""

from pathlib import Path

import pytest
import transformers
from torch import nn

from fimlora import Statistics
from fimlora.model.loading import align
from fimlora.statistics.options import Record
from support.models import make_batch
from support.statistics import assert_identical

LENGTHS = ([9, 5, 7, 2], [6, 9, 3])
# Everything that a run of a model without an adapter can record.
RECORDS = tuple(record for record in Record if not record.needs_adapter)
ALL = {
    "estimator": "both",
    "record": tuple(record.value for record in RECORDS),
    "null": True,
    "halves": True,
}


@pytest.fixture(autouse=True)
def quiet():
    """Loading draws no progress bars."""
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def save(model: nn.Module, folder: Path) -> nn.Module:
    """Save in small shards and load them, as streaming has them in memory."""
    model.save_pretrained(folder, max_shard_size="20KB")
    return align(type(model).from_pretrained(folder).eval())


def batches_for(name: str) -> list:
    """Two batches of unequal lengths for a model of `support.models`."""
    return [make_batch(name, lengths, seed=i) for i, lengths in enumerate(LENGTHS)]


def assert_same(streamed: Statistics, resident: Statistics) -> None:
    """Equal to the last bit, in all that was recorded and said about it."""
    assert_identical(streamed, resident)
