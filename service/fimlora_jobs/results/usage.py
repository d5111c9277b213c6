"""When each result was last used, and which were evicted: what makes eviction safe.

Whoever reads, pins or commits a result says so first; whoever evicts one claims it first. Both
are single steps in Redis, so one of the two is told: a claim fails when the result was used
since it was chosen, and a use fails when the result was claimed.
"""

from dataclasses import dataclass
from typing import cast

from fimlora_jobs.answers import text_of
from fimlora_jobs.catalogue import Catalogue
from fimlora_jobs.deduplication import FIGURES
from fimlora_jobs.result_owners import ResultOwners
from fimlora_jobs.scripts import run_script
from fimlora_jobs.store import JobStore

EVICTING_TTL_S = 60  # a process that dies while it deletes keeps committers waiting this long
MAX_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class ResultUsage:
    """What is known of results beside their files, in the same Redis as the jobs."""

    store: JobStore

    def use(self, digest: str, *, is_there: bool = False) -> bool | None:
        """Note that a result is about to be read.

        Args:
            digest: Its address.
            is_there: Whether it has been seen, and so is noted even if it is not known.

        Returns:
            False when it was evicted, ``None`` when it is not known and nothing was noted.
        """
        noted = int(self._run("result_use", digest, str(int(is_there)), n_keys=2))
        return None if noted < 0 else bool(noted)

    def revive(self, digest: str) -> bool:
        """Note that a result is about to be committed; false while it is being deleted."""
        return bool(self._run("result_revive", digest))

    def claim(self, digest: str, *, seen_ms: int | None) -> bool:
        """Take a result for deletion; false when it was used since ``seen_ms``."""
        seen = "" if seen_ms is None else str(seen_ms)
        return bool(self._run("result_claim", digest, seen, EVICTING_TTL_S, MAX_REMEMBERED))

    def release(self, digest: str) -> None:
        """End a claim: the result is deleted, and may be committed again."""
        self.store.redis.delete(self._keys(digest)[2])
        ResultOwners(self.store).forget_later(digest)

    def note_gone(self, digest: str) -> None:
        """Note that a result was there once and is not any more."""
        gone = {digest: self.store.now_ms()}
        self.store.redis.zadd(self._keys(digest)[1], gone, nx=True)

    def last_uses(self) -> dict[str, int]:
        """When each result was last used, in the server's milliseconds."""
        found = self.store.redis.zrange(self._keys("")[0], 0, -1, withscores=True)
        scored = cast("list[tuple[bytes, float]]", found)  # of its types, the one with scores
        return {text_of(digest): int(score) for digest, score in scored}

    def needed(self) -> set[str]:
        """Results that a pin stands for, or that an open job plans from."""
        return self.pinned() | self._planned_from()

    def pinned(self) -> set[str]:
        """Results that a pin stands for now."""
        return Catalogue(self.store).pinned_digests()

    def count(self, what: str, by: int = 1) -> None:
        """Add to a figure."""
        self.store.redis.hincrby(self.store.key(FIGURES), what, by)

    def figures(self) -> dict[str, int]:
        """All figures."""
        found = self.store.redis.hgetall(self.store.key(FIGURES))
        return {text_of(name): int(value) for name, value in found.items()}

    def _planned_from(self) -> set[str]:
        earlier = {
            record.fields.get("statistics_from", "")
            for record in self.store.shown_many(self.store.open_jobs())
        }
        results = (r.json_field("result") for r in self.store.shown_many(earlier - {""}))
        return {result["digest"] for result in results if result}

    def _run(self, script: str, digest: str, *more: str | int, n_keys: int = 3) -> int:
        keys = self._keys(digest)[:n_keys]
        return int(run_script(self.store.redis, script, keys=keys, args=[digest, *more]))

    def _keys(self, digest: str) -> list[str]:
        key = self.store.key
        return [key("results_used"), key("results_evicted"), key("evicting", digest)]
