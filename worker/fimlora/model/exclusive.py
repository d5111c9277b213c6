"""One measurement of a model at a time: hooks and frozen parameters are the whole model's.

A second thread waits until the first is done; models that differ do not wait for each other.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

from fimlora.model.targets import base_model_of

# Beside the models, not on them: an attribute would be copied and pickled with a model.
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_finding = threading.Lock()


@contextmanager
def exclusive(model: nn.Module) -> Iterator[None]:
    """Have a model for this thread alone inside the block.

    Args:
        model: The model; wrapped by PEFT or compiled, it is the one inside.

    Yields:
        None, once no other thread has it. A thread may enter again what it is in.
    """
    with _finding:
        lock = _locks.setdefault(base_model_of(model), threading.RLock())
    with lock:
        yield
