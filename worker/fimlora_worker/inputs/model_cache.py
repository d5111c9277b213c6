"""Models that stay loaded between jobs: the oldest leave when they grow too large.

Knows nothing about models: any value with a size can be kept. Not an LRU cache of cachetools:
that one makes room when a value is there, so that the old and the new model would be in memory
at once, and it keeps no value beyond its limit.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class ModelCache:
    """Least recently used values, limited by their size in bytes.

    Args:
        limit_bytes: What all values together may take; one alone may take more.
    """

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[Hashable, tuple[int, Any]] = OrderedDict()
        self.n_loads = 0
        self.largest_bytes = 0

    def get(self, key: Hashable, *, size: int, load: Callable[[], Any]) -> Any:
        """The value of a key; loaded, after making room for it, if it is not there."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][1]
        while self._kept and self._total() + size > self._limit_bytes:
            self._kept.popitem(last=False)
        self.n_loads += 1
        value = load()
        self._kept[key] = (size, value)
        self.largest_bytes = max(self.largest_bytes, self._total())
        return value

    def __contains__(self, key: Hashable) -> bool:
        """Whether a value is there."""
        return key in self._kept

    def __len__(self) -> int:
        """Number of values."""
        return len(self._kept)

    def drop(self, key: Hashable) -> None:
        """Drop one value, if it is there."""
        self._kept.pop(key, None)

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()

    def _total(self) -> int:
        return sum(size for size, _ in self._kept.values())
