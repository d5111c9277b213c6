"""What plans take from stored statistics, kept by content.

Who asks for one plan asks for others of the same job, mostly under another budget, and reading
and scoring its statistics takes as long as all the rest.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import BoundedSemaphore, Condition
from typing import TYPE_CHECKING

from cachetools import LRUCache, cached

if TYPE_CHECKING:  # the engine brings numpy, and is imported when a plan is asked for
    from fimlora.confidence.signal import SignalSource
    from fimlora.scores import Scores
    from fimlora.statistics import Statistics

MAX_BYTES = 64 << 20
N_AT_ONCE = 8  # files being read, each with its sums in memory
MODULE_BYTES = 1_200  # roughly, of a module's name, sides, score and random draws
VALUE_BYTES = 8  # of a singular value, a score of a half, an example's


@dataclass(frozen=True, slots=True)
class ScoredStatistics:
    """Statistics as plans of one method, scale and aggregation see them.

    Attributes:
        scores: The scores.
        digest: Of the statistics' file under that scale.
        examples: Of the statistics, what confidence goes by: their values per example.
        signal: What the signal of a plan goes by, or the reason why none is known; ``None``
            where it was not asked for.
    """

    scores: "Scores"
    digest: str
    examples: "Statistics"
    signal: "SignalSource | str | None" = None

    @property
    def n_bytes(self) -> int:
        """How much memory it takes, roughly."""
        n_values = sum(len(values) for values in self.scores.spectra.values())
        n_values += sum(len(values) for values in self.examples.example_energies.values())
        if self.signal is not None and not isinstance(self.signal, str):
            n_values += self.signal.n_numbers
        return MODULE_BYTES * len(self.scores.modules) + VALUE_BYTES * n_values


class ScoreCache:
    """Statistics scored of late, up to a sum of sizes; safe to use from several threads.

    Args:
        max_bytes: That sum. What is larger by itself is delivered and not kept.
        n_at_once: How many keys are read at the same time.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, *, n_at_once: int = N_AT_ONCE) -> None:
        self._turns = BoundedSemaphore(n_at_once)
        kept: LRUCache[Hashable, ScoredStatistics] = LRUCache(
            max_bytes, getsizeof=lambda scored: scored.n_bytes
        )
        keep = cached(kept, key=lambda key, _: key, condition=Condition())
        self._get = keep(self._read)

    def get(self, key: Hashable, read: Callable[[], ScoredStatistics]) -> ScoredStatistics:
        """Scored statistics by all that decides them, read when they are not there.

        Who asks for what another thread is reading waits for it.
        """
        return self._get(key, read)

    def _read(self, _: Hashable, read: Callable[[], ScoredStatistics]) -> ScoredStatistics:
        with self._turns:
            return read()
