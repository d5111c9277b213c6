"""Figures for Prometheus: what this process has seen, and what Redis knows about all of them.

No label holds anything that a client chose: routes are templates, methods and states are
closed sets, and worker names stay in GET /workers.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fimlora_contract.jobs import JobStatus
from fimlora_jobs.counters import read_counters
from fimlora_jobs.outbox import Outbox
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.record import created_ms
from fimlora_jobs.store import DURATION_BOUNDS_S, JobStore
from fimlora_jobs.workers import WorkerRegistry
from fimlora_service.http.dependencies import part

LATENCY_BOUNDS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 65)
METHODS = frozenset({"DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"})


class Metrics:
    """What one process counts.

    Attributes:
        registry: Everything that GET /metrics shows.
        requests: Requests and how long they took.
        accepted: Accepted calibrations by what earlier jobs saved.
        webhooks: Tries to deliver a webhook.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Histogram(
            "fimlora_http_request_duration_seconds",
            "Requests and their duration; long polls and streams take as long as they wait.",
            ["method", "route", "status"],
            buckets=LATENCY_BOUNDS_S,
            registry=self.registry,
        )
        self.accepted = Counter(
            "fimlora_calibrations_accepted",
            "Accepted calibrations: cached, shared with an open job, replanned from statistics, "
            "measured, or repeated under an Idempotency-Key.",
            ["outcome"],
            registry=self.registry,
        )
        self.webhooks = Counter(
            "fimlora_webhook_tries",
            "Tries to deliver a webhook: delivered, retry, refused, dropped or given_up.",
            ["outcome"],
            registry=self.registry,
        )

    @contextmanager
    def showing(self, collector: Collector) -> Iterator[None]:
        """Show what a collector reads, too, inside the block."""
        self.registry.register(collector)
        try:
            yield
        finally:
            self.registry.unregister(collector)

    def see_request(self, scope: Scope, *, status: int, seconds: float) -> None:
        """Count a request that has been answered."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", "unmatched")
        self.requests.labels(method, route, status).observe(seconds)


MetricsDep = Annotated[Metrics, part("metrics")]


class MetricsMiddleware:
    """Count and time every request."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            seconds = time.monotonic() - began
            self._metrics.see_request(scope, status=status, seconds=seconds)


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
            found = [*self._jobs(), *self._queue(), *self._ends()]
        except RedisError:
            found = []
        up = GaugeMetricFamily("fimlora_redis_up", "Whether Redis answers.")
        up.add_metric([], float(bool(found)))
        yield up
        yield from found

    def _jobs(self) -> Iterator[Metric]:
        jobs = self._store.open_jobs()
        by_state = GaugeMetricFamily(
            "fimlora_jobs_open", "Jobs that have not ended, by state.", labels=["status"]
        )
        for status in JobStatus:
            if not status.is_final:
                count = sum(change.status is status for change in jobs.values())
                by_state.add_metric([status], count)
        yield by_state
        queued = [id_ for id_, change in jobs.items() if change.status is JobStatus.QUEUED]
        oldest = min(filter(None, map(created_ms, queued)), default=None)
        age = 0.0 if oldest is None else max(0.0, (self._store.now_ms() - oldest) / 1000)
        yield GaugeMetricFamily(
            "fimlora_oldest_queued_job_seconds", "Age of the oldest queued job.", value=age
        )

    def _queue(self) -> Iterator[Metric]:
        depth = self._transport.depth()
        yield GaugeMetricFamily("fimlora_queue_length", "Attempts that wait.", value=depth)
        waiting = Outbox(self._store).waiting()
        yield GaugeMetricFamily(
            "fimlora_webhooks_waiting", "Webhooks not delivered or given up.", value=waiting
        )
        workers = WorkerRegistry(self._store).living()
        family = GaugeMetricFamily(
            "fimlora_workers", "Living workers.", labels=["state", "device"]
        )
        for state in ("idle", "busy"):
            for device in ("cpu", "cuda"):
                count = sum((w.state, w.device) == (state, device) for w in workers)
                family.add_metric([state, device], count)
        yield family

    def _ends(self) -> Iterator[Metric]:
        counters = read_counters(self._store)
        ended = CounterMetricFamily(
            "fimlora_jobs_ended", "Jobs by the state they ended in.", labels=["status"]
        )
        for status, count in counters.ended.items():
            ended.add_metric([status], count)
        yield ended
        bounds = [str(float(bound)) for bound in DURATION_BOUNDS_S]
        yield HistogramMetricFamily(
            "fimlora_calibration_duration_seconds",
            "From start to success, of jobs that have measured.",
            buckets=[
                *zip(bounds, map(float, counters.within), strict=True),
                ("+Inf", float(counters.n_measured)),
            ],
            sum_value=counters.seconds,
        )
