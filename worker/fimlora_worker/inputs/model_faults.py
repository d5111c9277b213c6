"""Whose fault an exception is: the model's, which is then named, or the machine's.

Transformers and tokenizers raise whatever their code meets in an odd file, so that no list of
exceptions is complete; what speaks of the machine is short and known.
"""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fimlora.errors import FimloraError
from fimlora_jobs.datasets.columns import ColumnError
from fimlora_jobs.datasets.rows import RowError
from fimlora_worker.errors import UnsupportedArchitecture, WorkerError

OWN = (WorkerError, FimloraError, ColumnError, RowError)
OF_MACHINES = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.EAGAIN, errno.ESTALE,
})  # fmt: skip
# No sentence of a library is worth more of a user's screen.
MAX_CHARACTERS = 500


@contextmanager
def named_as(what: str) -> Iterator[None]:
    """Refuse a model whose files make a library fail, whatever it raises.

    Args:
        what: Beginning of the sentence.

    Raises:
        UnsupportedArchitecture: A library has failed, and not for want of memory or disk.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, OWN) or is_of_machine(error):
            raise
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise UnsupportedArchitecture(f"{what}: {sentence_of(error)}") from error


def sentence_of(error: BaseException) -> str:
    """What an exception says, in one line of bounded length."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError | IndexError | AssertionError | TypeError):
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} ..."


def is_of_machine(error: BaseException) -> bool:
    """Whether memory, disk, device or network failed, so that the model may be sound."""
    torch = sys.modules.get("torch")
    if isinstance(error, OSError):
        return error.errno in OF_MACHINES or isinstance(error, ConnectionError | TimeoutError)
    if torch is None:  # nothing has asked for memory but Python itself
        return isinstance(error, MemoryError)
    from fimlora.memory.out_of_memory import is_out_of_memory

    if is_out_of_memory(error):
        return True
    broken_device = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
    return isinstance(error, broken_device) or "CUDA error" in str(error)


def is_panic(error: BaseException) -> bool:
    """Whether Rust code has panicked: no ``except Exception`` would catch it."""
    return type(error).__name__ == "PanicException"
