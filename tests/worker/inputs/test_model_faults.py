"""Whether an exception speaks of the model or of the machine."""

import errno

import pytest

from fimlora.errors import UnsupportedModule
from fimlora_jobs.datasets.rows import RowError
from fimlora_worker.errors import CancelRequested, DeadlinePassed, UnsupportedArchitecture
from fimlora_worker.inputs.model_faults import named_as


class PanicException(BaseException):
    """Stands for what a tokenizer raises that has panicked."""


@pytest.mark.parametrize(
    "error",
    [KeyError("vocab"), ValueError("bad"), OSError(errno.ENOENT, "gone"), PanicException("no")],
    ids=repr,
)
def test_what_a_model_makes_a_library_raise_names_the_model(error):
    """Whatever it is, panics of Rust code included, its sentence is told."""
    with (
        pytest.raises(
            UnsupportedArchitecture, match=f"the tokenizer fails: .*{error.args[-1]}"
        ),
        named_as("the tokenizer fails"),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOSPC, "no space"),
        OSError(errno.ENOMEM, "no memory for another process"),
        BlockingIOError(errno.EAGAIN, "too many processes"),
        ConnectionResetError("away"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
        RuntimeError("CUDA error: an illegal memory access"),
        CancelRequested("j"),
        DeadlinePassed("j"),
        KeyboardInterrupt(),
        RowError("line 3"),
        UnsupportedModule("q_proj"),
    ],
    ids=repr,
)
def test_what_speaks_of_the_machine_or_has_a_name_passes(error):
    """A sound model is never blamed for memory, disk, time or the user's wish."""
    with pytest.raises(type(error)) as caught, named_as("the tokenizer fails"):
        raise error

    assert caught.value is error
