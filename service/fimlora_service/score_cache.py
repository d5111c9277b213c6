"""What plans take from stored statistics, kept by content.

Who asks for one plan asks for others of the same job, mostly under another budget, and reading
and scoring its statistics takes as long as all the rest.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from cachetools import LRUCache

if TYPE_CHECKING:  # the engine brings numpy, and is imported when a plan is asked for
    from fimlora.replanning import Scored

MAX_BYTES = 64 << 20
N_AT_ONCE = 8  # readings under way, each with the sums of a file in memory
MODULE_BYTES = 1_000  # roughly, of a module's name, sides and score


@dataclass(frozen=True, slots=True)
class Reading:
    """Statistics as plans of one rule, scale and aggregation see them.

    Attributes:
        scored: The scores.
        digest: Of the statistics' file under that scale.
    """

    scored: "Scored"
    digest: str

    @property
    def n_bytes(self) -> int:
        """How much memory it takes, roughly."""
        spectra = sum(values.nbytes for values in self.scored.spectra.values())
        return MODULE_BYTES * len(self.scored.modules) + spectra


class ScoreCache:
    """The readings of late, up to a sum of sizes; safe to use from several threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._lock = Lock()
        self._kept: LRUCache[Hashable, Reading] = LRUCache(
            max_bytes, getsizeof=lambda reading: reading.n_bytes
        )
        self._under_way = tuple(Lock() for _ in range(N_AT_ONCE))

    def get(self, key: Hashable, read: Callable[[], Reading]) -> Reading:
        """A reading by all that decides it, taken when it is not there.

        Who asks for what another thread is reading waits for it.
        """
        if known := self._find(key):
            return known
        with self._under_way[hash(key) % N_AT_ONCE]:
            return self._find(key) or self._take(key, read)

    def _find(self, key: Hashable) -> Reading | None:
        with self._lock:
            return self._kept.get(key)

    def _take(self, key: Hashable, read: Callable[[], Reading]) -> Reading:
        reading = read()
        with self._lock:
            if reading.n_bytes <= self._kept.maxsize:
                self._kept[key] = reading
        return reading
