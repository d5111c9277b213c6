"""Figures that all processes have in common: what Redis knows, and what the disk has left.

They are read anew whenever somebody asks. Workers have no port: they count in Redis.
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from fimlora_contract.jobs import JobStatus
from fimlora_jobs.counters import Counters, read_counters
from fimlora_jobs.outbox import Outbox
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.record import created_ms
from fimlora_jobs.store import DURATION_BOUNDS_S, JobStore
from fimlora_jobs.workers import WorkerRegistry

# Ends that an alert asks for are there from the beginning: a counter that appears with its
# first count has not increased.
ATTEMPT_ENDS = (
    "succeeded", "canceled", "handed_over", "worker_lost", "out_of_memory_host",
    "storage_unavailable",
)  # fmt: skip
Rows = Iterable[tuple[list[str], float]]


@dataclass(frozen=True, slots=True)
class Family:
    """One figure: its name, what it means, and the labels it is told by."""

    name: str
    means: str
    labels: tuple[str, ...] = ()

    def gauge(self, rows: Rows) -> Metric:
        """Values that go up and down."""
        found = GaugeMetricFamily(self.name, self.means, labels=self.labels)
        for labels, value in rows:
            found.add_metric(labels, value)
        return found

    def counter(self, rows: Rows) -> Metric:
        """Values that only grow."""
        found = CounterMetricFamily(self.name, self.means, labels=self.labels)
        for labels, value in rows:
            found.add_metric(labels, value)
        return found


REDIS_UP = Family("fimlora_redis_up", "Whether Redis answers.")
WRITABLE = Family("fimlora_store_writable", "Whether Redis takes writes, as every job needs.")
JOBS_OPEN = Family("fimlora_jobs_open", "Jobs that have not ended, by state.", ("status",))
OLDEST = Family("fimlora_oldest_queued_job_seconds", "Age of the oldest queued job.")
QUEUE = Family("fimlora_queue_length", "Attempts that wait for a worker.")
WEBHOOKS = Family("fimlora_webhooks_waiting", "Webhooks not delivered or given up.")
WORKERS = Family("fimlora_workers", "Living workers.", ("state", "device"))
HEARTBEAT = Family(
    "fimlora_worker_heartbeat_age_seconds",
    "Age of the oldest heartbeat among the living workers; 0 without any.",
)
JOBS_ENDED = Family("fimlora_jobs_ended", "Jobs by the state they ended in.", ("status",))
ATTEMPTS = Family(
    "fimlora_attempts_ended",
    "Attempts by why they ended: succeeded, canceled, handed_over (an orderly stop), or the "
    "code of the error.",
    ("reason",),
)
BUSY = Family("fimlora_worker_busy_seconds", "Time that workers have spent on attempts.")
LOADED = Family("fimlora_models_loaded", "Models that workers had to load, not having them.")
DURATION = Family(
    "fimlora_calibration_duration_seconds",
    "From start to success, of jobs that have measured.",
)
DISK_FREE = Family(
    "fimlora_disk_free_bytes", "Free space for the data folder; NaN where nobody can tell."
)
GAUGES = (
    REDIS_UP, WRITABLE, JOBS_OPEN, OLDEST, QUEUE, WEBHOOKS, WORKERS, HEARTBEAT, DISK_FREE,
)  # fmt: skip
COUNTERS = (JOBS_ENDED, ATTEMPTS, BUSY, LOADED)


class DiskCollector(Collector):
    """What the disk of the data folder has left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        """The bytes that an ordinary user may still write."""
        try:
            disk = os.statvfs(self._folder)
            free = float(disk.f_bavail * disk.f_frsize)
        except OSError:
            free = math.nan
        yield DISK_FREE.gauge([([], free)])


class StoreCollector(Collector):
    """What Redis knows, read anew whenever somebody asks."""

    def __init__(self, store: JobStore, transport: RqTransport) -> None:
        self._store = store
        self._transport = transport

    def describe(self) -> list[Metric]:
        """Nothing that is read beforehand: registering must not need Redis."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Figures of all processes together; without Redis only that it is away."""
        try:
            found = [*self._jobs(), *self._queue(), *self._workers(), *self._counted()]
        except RedisError:
            found = []
        yield REDIS_UP.gauge([([], float(bool(found)))])
        yield WRITABLE.gauge([([], float(bool(found) and self._takes_writes()))])
        yield from found

    def _takes_writes(self) -> bool:
        try:
            self._store.redis.set(self._store.key("on_disk"), "")
        except RedisError:
            return False
        return True

    def _jobs(self) -> Iterator[Metric]:
        jobs = self._store.open_jobs()
        states = [change.status for change in jobs.values()]
        yield JOBS_OPEN.gauge(
            ([status], states.count(status)) for status in JobStatus if not status.is_final
        )
        queued = [id_ for id_, change in jobs.items() if change.status is JobStatus.QUEUED]
        oldest = min(filter(None, map(created_ms, queued)), default=None)
        age = 0.0 if oldest is None else max(0.0, (self._store.now_ms() - oldest) / 1000)
        yield OLDEST.gauge([([], age)])

    def _queue(self) -> Iterator[Metric]:
        yield QUEUE.gauge([([], self._transport.depth())])
        yield WEBHOOKS.gauge([([], Outbox(self._store).waiting())])

    def _workers(self) -> Iterator[Metric]:
        workers = WorkerRegistry(self._store).living()
        kinds = [(worker.state, worker.device) for worker in workers]
        yield WORKERS.gauge(
            ([state, device], kinds.count((state, device)))
            for state in ("idle", "busy")
            for device in ("cpu", "cuda")
        )
        now_s = self._store.now_ms() / 1000
        ages = [now_s - worker.last_seen.timestamp() for worker in workers]
        yield HEARTBEAT.gauge([([], max(0.0, *ages, 0.0))])

    def _counted(self) -> Iterator[Metric]:
        counters = read_counters(self._store)
        yield JOBS_ENDED.counter(([s], n) for s, n in counters.ended.items())
        ends = dict.fromkeys(ATTEMPT_ENDS, 0) | counters.attempts
        yield ATTEMPTS.counter(([reason], n) for reason, n in ends.items())
        yield BUSY.counter([([], counters.busy_s)])
        yield LOADED.counter([([], counters.models_loaded)])
        yield durations(counters)


def durations(counters: Counters) -> Metric:
    """How long measurements took, in classes."""
    bounds = [str(float(bound)) for bound in DURATION_BOUNDS_S]
    return HistogramMetricFamily(
        DURATION.name,
        DURATION.means,
        buckets=[
            *zip(bounds, map(float, counters.within), strict=True),
            ("+Inf", float(counters.n_measured)),
        ],
        sum_value=counters.seconds,
    )
