"""Import heavy libraries without looking for garbage meanwhile."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected_imports() -> Iterator[None]:
    """Imports inside the block make much and free little; a tenth of their time is the search.

    What is there afterwards stays for good, and is not searched again: neither by full collections
    while a job runs, which would hold it up for as long as they take.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
