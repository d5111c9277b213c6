"""What a client is told when no more jobs are taken, and when it may come again."""

from math import ceil

from fimlora_jobs.counters import read_counters
from fimlora_jobs.open_limits import TooManyOpen
from fimlora_jobs.store import JobStore
from fimlora_jobs.workers import WorkerRegistry
from fimlora_service.errors import QueueFull, QuotaExceeded, ServiceError

UNKNOWN_S = 30
LONGEST_S = 300


def refusal_of(full: TooManyOpen, store: JobStore) -> ServiceError:
    """Why a job is not taken, with the time after which one more probably is."""
    headers = {"Retry-After": str(next_end_s(store))}
    if full.is_owners:
        return QuotaExceeded(
            f"{full.limit} jobs of this tenant have not ended, and no more are allowed "
            "(FIMLORA_MAX_OPEN_JOBS_PER_TENANT)",
            headers=headers,
        )
    return QueueFull(
        f"{full.limit} jobs have not ended, and no more are taken", headers=headers
    )


def next_end_s(store: JobStore) -> int:
    """Seconds until a job ends, by what earlier ones took and how many workers there are."""
    mean_s, n_workers = read_counters(store).mean_s, len(WorkerRegistry(store).living())
    if mean_s is None or not n_workers:
        return UNKNOWN_S
    return min(max(ceil(mean_s / n_workers), 1), LONGEST_S)
