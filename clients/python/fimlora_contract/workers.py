"""Who is at work: each worker keeps an entry fresh, and one that stops doing so is gone.

The entry is the worker's own word about itself, so that nobody has to ask RQ's registries,
which know nothing of devices and forget a dead worker only after minutes.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel
from fimlora_contract.store import JobStore
from fimlora_contract.tasks import LEASE_S


class Hardware(AnswerModel):
    """What a worker runs on."""

    device: Literal["cpu", "cuda"]
    device_name: str | None = Field(None, description="Of a GPU, as its driver calls it.")
    memory_bytes: int | None = Field(
        None,
        description="Of the device in total, within the container's limit; null if unknown.",
    )
    host_memory_bytes: int | None = Field(
        None, description="Of the machine in total, within the container's limit."
    )


class Worker(Hardware):
    """One living worker."""

    name: str
    object: Literal["worker"] = "worker"
    state: Literal["idle", "busy"]
    job_id: str | None = Field(None, description="The job it is busy with.")
    since: datetime = Field(description="When it took that state.")
    started_at: datetime
    last_seen: datetime


class WorkerPage(AnswerModel):
    """All living workers, by name."""

    object: Literal["list"] = "list"
    data: list[Worker]


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
