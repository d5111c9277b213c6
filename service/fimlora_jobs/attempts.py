"""How a job gets to a worker: a dotted name and JSON, nothing else.

One RQ job per attempt, enqueued as unique, so RQ itself never repeats anything and two
reapers cannot queue the same attempt twice. Beside them there are *hands*: RQ jobs by which
other workers train single runs of an evaluation for the attempt that leads it. Nobody needs a
hand to end well: what it leaves undone is anybody's.
"""

import secrets
from collections.abc import Iterable
from typing import Any

QUEUE_NAME = "fimlora"
# Of whatever kind the job is; the name stays, as two versions may share one queue.
RUN_ATTEMPT = "fimlora_worker.tasks.run_calibration"
LEND_HAND = "fimlora_worker.tasks.lend_hand"
JOB_TIMEOUT_S = 4 * 3600
MAX_ATTEMPTS = 3
MAX_STORAGE_REFUSALS = 5
LEASE_S = 20.0
REAPER_INTERVAL_S = 5.0
ORPHAN_GRACE_S = 15.0

ENQUEUE_OPTIONS: dict[str, Any] = {
    "unique": True,
    "result_ttl": 3600,
    "failure_ttl": 7 * 24 * 3600,
}
HAND_OPTIONS: dict[str, Any] = {"result_ttl": 60, "failure_ttl": 3600}
_HAND = "hand_"


def rq_job_id(job_id: str, attempt: int) -> str:
    """Id of the RQ job that carries one attempt."""
    return f"{job_id}-{attempt}"


def parse_rq_job_id(rq_id: str) -> tuple[str, int]:
    """Job id and attempt number of an RQ job."""
    job_id, _, attempt = rq_id.rpartition("-")
    return job_id, int(attempt)


def new_hand_id(job_id: str) -> str:
    """A fresh id of an RQ job that lends an evaluation a hand."""
    return f"{job_id}-{_HAND}{secrets.token_hex(4)}"


def is_hand(rq_id: str) -> bool:
    """Whether an RQ job lends a hand, and carries no attempt."""
    return rq_id.rpartition("-")[2].startswith(_HAND)


def job_id_of(rq_id: str) -> str:
    """The job that an RQ job is for, as an attempt of it or as a hand."""
    return rq_id.rpartition("-")[0]


def attempts_in(rq_ids: Iterable[bytes | str]) -> set[tuple[str, int]]:
    """Job ids and attempt numbers of RQ jobs; what somebody else queued is passed over."""
    texts = (rq_id.decode() if isinstance(rq_id, bytes) else rq_id for rq_id in rq_ids)
    return {parse_rq_job_id(text) for text in texts if text.rpartition("-")[2].isdecimal()}
