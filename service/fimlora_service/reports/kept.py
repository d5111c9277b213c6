"""What was drawn of late, as drawing takes a second and looking again none."""

from collections.abc import Callable, Hashable
from threading import Condition

from cachetools import LRUCache, cached

MAX_BYTES = 64 << 20


class KeptDrawings:
    """Pages and pictures by what they are of; safe to use from several threads.

    Args:
        max_bytes: Of all that is kept. What is larger by itself is delivered and not kept.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        kept: LRUCache[Hashable, bytes] = LRUCache(max_bytes, getsizeof=len)
        keep = cached(kept, key=lambda key, _: key, condition=Condition())
        self._get = keep(_made)

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """What was drawn, or is drawn now; who asks for what is being drawn waits for it."""
        return self._get(key, make)


def _made(_: Hashable, make: Callable[[], bytes]) -> bytes:
    return make()
