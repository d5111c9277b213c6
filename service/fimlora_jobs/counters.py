"""What has been counted since the first job: how jobs and attempts ended, how long they took.

The script that ends a job counts it in the same step, so that no end is counted twice and
none is missed, whichever process puts it on record. What workers say of themselves, and why
attempts end, is counted after the fact: it is for pictures and alerts, and nobody waits for it.
"""

from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate

from redis.exceptions import RedisError

from fimlora_contract.jobs import JobStatus
from fimlora_jobs.answers import text_of
from fimlora_jobs.store import ATTEMPT_END, COUNTERS, DURATION_BOUNDS_S, JobStore


@dataclass(frozen=True, slots=True)
class Counters:
    """Numbers over all time.

    Attributes:
        ended: Jobs by the state they ended in.
        n_measured: Jobs that have measured and succeeded.
        seconds: How long those ran in sum.
        within: How many of them took at most so many seconds, by `DURATION_BOUNDS_S`.
        attempts: Attempts by why they ended.
        busy_s: How long workers have worked on attempts.
        models_loaded: How often a worker had to load a model.
    """

    ended: dict[JobStatus, int]
    n_measured: int
    seconds: float
    within: tuple[int, ...]
    attempts: dict[str, int]
    busy_s: float
    models_loaded: int

    @property
    def mean_s(self) -> float | None:
        """How long a measurement took on average; ``None`` before the first."""
        return self.seconds / self.n_measured if self.n_measured else None


def read_counters(store: JobStore) -> Counters:
    """What has been counted so far."""
    stored = store.redis.hgetall(store.key(COUNTERS))
    counted = {text_of(name): float(text_of(value)) for name, value in stored.items()}
    bounds = [str(bound) for bound in DURATION_BOUNDS_S]
    ended = (s for s in JobStatus if s.is_final)
    return Counters(
        ended={status: int(counted.get(f"ended:{status}", 0)) for status in ended},
        n_measured=int(counted.get("measured", 0)),
        seconds=counted.get("seconds", 0.0),
        within=tuple(accumulate(int(counted.get(f"within:{bound}", 0)) for bound in bounds)),
        attempts={
            name.removeprefix(ATTEMPT_END): int(count)
            for name, count in counted.items()
            if name.startswith(ATTEMPT_END)
        },
        busy_s=counted.get("busy_s", 0.0),
        models_loaded=int(counted.get("models_loaded", 0)),
    )


def count_work(store: JobStore, *, busy_s: float, models_loaded: int) -> None:
    """Count what an attempt has cost its worker."""
    with suppress(RedisError):
        store.redis.hincrbyfloat(store.key(COUNTERS), "busy_s", round(busy_s, 3))
        store.redis.hincrby(store.key(COUNTERS), "models_loaded", models_loaded)
