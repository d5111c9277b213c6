"""What jobs have found, kept while it is on record: a slider asks one job for a plan after another.

A record of a large model has a megabyte of JSON, and reading it takes longer than a plan does.
"""

from dataclasses import dataclass
from threading import Lock

from cachetools import LRUCache

from fimlora_contract.jobs import CalibrationResult
from fimlora_jobs.allow_lists import Allowed
from fimlora_jobs.durability import owe
from fimlora_jobs.store import JobStore
from fimlora_service.results.reading import plan_of, usable

MAX_BYTES = 64 << 20
_N_TIMES = 4  # what a result takes in memory, roughly, of its JSON


@dataclass(frozen=True, slots=True)
class MeasuredJob:
    """A job that has made a plan.

    Attributes:
        version: Of the record.
        changed_ms: When the record changed last.
        result: What it has found.
        n_bytes: How much memory that takes, roughly.
    """

    version: int
    changed_ms: int
    result: CalibrationResult
    n_bytes: int


class MeasuredJobs:
    """Such jobs of late, up to a sum of sizes; safe to use from several threads.

    Args:
        store: Where jobs are on record.
        allowed: What the operator lets jobs use.
        max_bytes: That sum. What is larger by itself is read and not kept.
    """

    def __init__(
        self, store: JobStore, allowed: Allowed, *, max_bytes: int = MAX_BYTES
    ) -> None:
        self._store, self._allowed, self._max_bytes = store, allowed, max_bytes
        self._lock = Lock()
        self._known: LRUCache[str, MeasuredJob] = LRUCache(
            max_bytes, getsizeof=lambda job: job.n_bytes
        )

    def result(self, job_id: str) -> CalibrationResult:
        """What a job has found, as it is on record now; not to be written to.

        Raises:
            JobMissing: There is no such job.
            ServiceError: It has made no plan, or used what is no longer allowed.
        """
        version = self._store.version_of(job_id)
        with self._lock:
            known = self._known.get(job_id)
        if known is None or known.version != version:
            return self._read(job_id)
        owe(known.changed_ms)  # whoever read it may still be waiting for the disk
        return known.result

    def _read(self, job_id: str) -> CalibrationResult:
        record = self._store.shown(job_id)
        found = plan_of(usable(record, self._allowed).to_job())
        n_bytes = _N_TIMES * len(record.fields.get("result", ""))
        job = MeasuredJob(record.version, record.updated_at_ms, found, n_bytes)
        with self._lock:
            if n_bytes <= self._max_bytes:
                self._known[job_id] = job
        return found
