"""A worker's entry in the registry of living workers."""

import threading
from datetime import UTC, datetime

from fimlora_contract.workers import Hardware, Worker
from fimlora_jobs.attempts import job_id_of
from fimlora_jobs.workers import WorkerRegistry


class Presence:
    """Keeps one worker's entry fresh and true; any thread may call it.

    Args:
        registry: Where the entry is kept.
        name: The worker's name.
        hardware: What it runs on.
    """

    def __init__(self, registry: WorkerRegistry, *, name: str, hardware: Hardware) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        now = self._now()
        self._entry: Worker | None = Worker(
            name=name, state="idle", since=now, started_at=now, last_seen=now,
            **hardware.model_dump(),
        )  # fmt: skip

    def refresh(self) -> None:
        """Say that the worker is still there."""
        with self._lock:
            if self._entry:
                self._registry.announce(self._entry)

    def begin(self, rq_id: str) -> None:
        """Say what the worker is busy with."""
        self._change("busy", job_id_of(rq_id))

    def end(self) -> None:
        """Say that the worker is free."""
        self._change("idle", None)

    def leave(self) -> None:
        """Strike the entry, for good."""
        with self._lock:
            if self._entry:
                self._registry.remove(self._entry.name)
            self._entry = None

    def _change(self, state: str, job_id: str | None) -> None:
        with self._lock:
            if self._entry:
                changed = {"state": state, "job_id": job_id, "since": self._now()}
                self._entry = self._entry.model_copy(update=changed)
        self.refresh()

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._registry.store.now_ms() / 1000, tz=UTC)
