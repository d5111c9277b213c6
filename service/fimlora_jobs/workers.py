"""The registry of living workers: each keeps its entry fresh, and one that stops doing so is gone.

The entry is the worker's own word about itself, so that nobody has to ask RQ's registries,
which know nothing of devices and forget a dead worker only after minutes.
"""

import json
from dataclasses import dataclass
from typing import Any

from fimlora_contract.workers import Worker
from fimlora_jobs.attempts import LEASE_S
from fimlora_jobs.store import JobStore


@dataclass(frozen=True, slots=True)
class WorkerRegistry:
    """Living workers, in the same Redis as the jobs."""

    store: JobStore

    def announce(self, worker: Worker) -> None:
        """Enter a worker, or keep its entry fresh."""
        entry = worker.model_dump_json(exclude={"last_seen"})
        seen = json.dumps({"seen_ms": self.store.now_ms(), "worker": json.loads(entry)})
        self.store.redis.hset(self._key(), worker.name, seen)

    def remove(self, name: str) -> None:
        """Strike a worker that leaves in good order."""
        self.store.redis.hdel(self._key(), name)

    def living(self) -> list[Worker]:
        """All workers whose entry is fresh, by name; the others are struck."""
        oldest = self.store.now_ms() - LEASE_S * 1000
        workers, dead = [], []
        for name, text in self.store.redis.hgetall(self._key()).items():
            entry = json.loads(text)
            if entry["seen_ms"] < oldest:
                dead.append(name)
            else:
                workers.append(_worker(entry))
        if dead:
            # One that was only asleep enters itself again.
            self.store.redis.hdel(self._key(), *dead)
        return sorted(workers, key=lambda worker: worker.name)

    def _key(self) -> str:
        return self.store.key("workers")


def _worker(entry: dict[str, Any]) -> Worker:
    return Worker.model_validate(entry["worker"] | {"last_seen": entry["seen_ms"] / 1000})
