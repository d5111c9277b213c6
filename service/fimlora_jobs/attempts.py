"""How the service hands a job to a worker: a dotted name and JSON, nothing else.

One RQ job per attempt, enqueued as unique, so RQ itself never repeats anything and two
reapers cannot queue the same attempt twice.
"""

from collections.abc import Iterable
from typing import Any

QUEUE_NAME = "fimlora"
# Of whatever kind the job is; the name stays, as two versions may share one queue.
RUN_ATTEMPT = "fimlora_worker.tasks.run_calibration"
JOB_TIMEOUT_S = 4 * 3600
MAX_ATTEMPTS = 3
LEASE_S = 20.0
REAPER_INTERVAL_S = 5.0
ORPHAN_GRACE_S = 15.0

ENQUEUE_OPTIONS: dict[str, Any] = {
    "unique": True,
    "result_ttl": 3600,
    "failure_ttl": 7 * 24 * 3600,
}


def rq_job_id(job_id: str, attempt: int) -> str:
    """Id of the RQ job that carries one attempt."""
    return f"{job_id}-{attempt}"


def parse_rq_job_id(rq_id: str) -> tuple[str, int]:
    """Job id and attempt number of an RQ job."""
    job_id, _, attempt = rq_id.rpartition("-")
    return job_id, int(attempt)


def attempts_in(rq_ids: Iterable[bytes | str]) -> set[tuple[str, int]]:
    """Job ids and attempt numbers of RQ jobs; what somebody else queued is passed over."""
    texts = (rq_id.decode() if isinstance(rq_id, bytes) else rq_id for rq_id in rq_ids)
    return {parse_rq_job_id(text) for text in texts if text.rpartition("-")[2].isdecimal()}
