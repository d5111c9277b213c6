"""A model is measured in memory where it fits and streamed where it does not."""

import pytest
import torch

from fimlora import measure
from fimlora.errors import InvalidOption, OutOfMemory, UnsupportedModule
from fimlora.measuring.executors import measure_where_it_fits, parse_executor
from fimlora.memory.device import free_bytes
from fimlora.memory.need import MemoryNeed
from fimlora.statistics.options import Executor
from support.models import make_batch, tiny

CPU = torch.device("cpu")
NOTHING = MemoryNeed(0, 0)
TOO_MUCH = MemoryNeed(2**60, 2**20)


class Ways:
    """Both ways to measure, the resident one without room and the other with a limit."""

    def __init__(self, *, resident: int = 0, streamed: int = 99) -> None:
        self.limits = {"resident": resident, "streamed": streamed}
        self.tried: list[tuple[str, int]] = []
        model, targets = tiny("bert_classifier")
        self.statistics = measure(
            model, [make_batch("bert_classifier", [3])], target_modules=targets
        )

    def way(self, name: str):
        def run(size: int):
            self.tried.append((name, size))
            if size > self.limits[name]:
                raise torch.OutOfMemoryError("Tried to allocate 3.00 GiB.")
            return self.statistics

        return run

    def measure(self, executor: str = "auto", need: MemoryNeed = NOTHING, batch: int = 8):
        return measure_where_it_fits(
            Executor(executor),
            device=CPU,
            need=need,
            largest_batch=batch,
            resident=self.way("resident"),
            streamed=self.way("streamed"),
        )


def test_a_model_that_fits_is_measured_in_memory():
    """Whole batches at once, and nothing is streamed."""
    ways = Ways(resident=8)

    assert ways.measure() is ways.statistics
    assert ways.tried == [("resident", 8)]


def test_a_model_that_seems_too_large_is_streamed_at_once():
    """Nobody tries to load what cannot fit: a system without limits would kill the process."""
    ways = Ways(resident=8)

    assert ways.measure(need=TOO_MUCH) is ways.statistics
    assert ways.tried == [("streamed", 8)]


def test_running_out_of_memory_turns_to_streaming_with_ever_smaller_micro_batches():
    """What fits only one block at a time, and only two examples of it."""
    ways = Ways(resident=0, streamed=2)

    assert ways.measure() is ways.statistics
    assert ways.tried == [("resident", 8), ("streamed", 8), ("streamed", 4), ("streamed", 2)]


def test_what_fits_neither_way_is_refused_with_both_reasons():
    """Need and limit of the resident model, and what was asked for when it was streamed."""
    ways = Ways(streamed=0)

    with pytest.raises(OutOfMemory) as caught:
        ways.measure(need=TOO_MUCH, batch=1)

    message = str(caught.value)
    assert "weights of 1073741824.0 GiB and about 1.0 MiB for one example, with " in message
    assert "cannot be streamed (one block and one example do not fit; " in message
    assert "another 3.0 GiB was asked for when " in message


@pytest.mark.parametrize("executor", ["resident", "streamed"])
def test_an_executor_that_was_asked_for_is_not_replaced(executor):
    """Even if it cannot do it and the other could."""
    ways = Ways(resident=0, streamed=0)

    with pytest.raises(OutOfMemory, match=r"another 3\.0 GiB was asked for when"):
        ways.measure(executor, need=TOO_MUCH, batch=1)

    assert ways.tried == [(executor, 1)]


def test_micro_batches_begin_as_large_as_seem_to_fit_on_a_cpu():
    """There, memory is promised to whoever asks, and who uses too much of it is killed."""
    left = free_bytes(CPU)
    assert left is not None
    ways = Ways(resident=999)

    ways.measure(need=MemoryNeed(left // 2, left // 10), batch=64)

    ((_, size),) = ways.tried
    assert 3 <= size <= 5


def test_a_model_that_cannot_be_streamed_and_does_not_fit():
    """The reason why it cannot is part of the answer."""

    def no_blocks(size: int):
        raise UnsupportedModule("no list of blocks")

    with pytest.raises(OutOfMemory, match=r"weights of .* cannot be streamed \(no list of"):
        measure_where_it_fits(
            Executor.AUTO,
            device=CPU,
            need=TOO_MUCH,
            largest_batch=1,
            resident=no_blocks,
            streamed=no_blocks,
        )


def test_an_unknown_executor_is_refused_by_what_there_is():
    """Before anything is read."""
    with pytest.raises(InvalidOption, match="executor='gpu'; allowed are 'auto', 'resident'"):
        parse_executor("gpu")
