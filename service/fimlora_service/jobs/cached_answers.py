"""Answers to GET /jobs/{id}, kept as bytes: who polls mostly asks for what has not changed."""

from dataclasses import dataclass
from threading import Lock

from cachetools import LRUCache

from fimlora_contract.digests import digest_bytes
from fimlora_jobs.durability import owe
from fimlora_jobs.store import JobStore

MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class JobView:
    """One answer.

    Attributes:
        version: Of the record that it was made from.
        is_final: Whether the job has ended.
        changed_ms: When the record changed last.
        body: The job as JSON.
        digest: Of the body.
    """

    version: int
    is_final: bool
    changed_ms: int
    body: bytes
    digest: str


class JobViews:
    """The answers of late, up to a sum of sizes; safe to use from several threads.

    Args:
        store: Where jobs are on record.
        max_bytes: That sum. What is larger by itself is answered and not kept.
    """

    def __init__(self, store: JobStore, *, max_bytes: int = MAX_BYTES) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._views: LRUCache[tuple[str, str], JobView] = LRUCache(
            max_bytes, getsizeof=lambda view: len(view.body)
        )

    def get(self, job_id: str, *, prefix: str) -> JobView:
        """The job as it is on record now; ``prefix`` goes before artefact links.

        Raises:
            JobMissing: There is no such job.
        """
        key, version = (job_id, prefix), self._store.version_of(job_id)
        with self._lock:
            known = self._views.get(key)
        if known and known.version == version:
            if known.is_final:  # whoever made it may still be waiting for the disk
                owe(known.changed_ms)
            return known
        view = self._make(job_id, prefix)
        with self._lock:
            if len(view.body) <= self._max_bytes:
                self._views[key] = view
        return view

    def _make(self, job_id: str, prefix: str) -> JobView:
        record = self._store.shown(job_id)
        body = record.to_job(prefix=prefix).model_dump_json().encode()
        is_final = record.status.is_final
        return JobView(record.version, is_final, record.updated_at_ms, body, digest_bytes(body))
