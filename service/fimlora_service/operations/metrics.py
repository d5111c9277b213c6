"""Figures for Prometheus: what this process has seen; `store_metrics` has those of all.

No label holds anything that a client chose: routes are templates, methods and states are
closed sets, and worker names stay in GET /workers.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fimlora_contract import __version__
from fimlora_service.http.dependencies import part
from fimlora_service.http.problems import PROBLEM

LATENCY_BOUNDS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 65)
METHODS = frozenset({"DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"})
# What asks for a job.
SUBMISSION = re.compile(r"(/v1)?/(calibrate|compare|evaluations|jobs/[^/]+/(compare|retry))")


class Metrics:
    """What one process counts.

    Attributes:
        registry: Everything that GET /metrics shows.
        requests: Requests and how long they took.
        accepted: Accepted calibrations by what earlier jobs saved.
        build: The version that answers.
        refused: Refused requests for a job.
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
        self.refused = Counter(
            "fimlora_submissions_refused",
            "Requests for a job that were refused, by the problem's code.",
            ["code"],
            registry=self.registry,
        )
        self.build = Gauge(
            "fimlora_build_info", "Always 1; the version that answers.", ["version"],
            registry=self.registry,
        )  # fmt: skip
        self.build.labels(__version__).set(1)
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
        code = scope.get(PROBLEM)
        if code and method == "POST" and SUBMISSION.fullmatch(scope["path"]):
            self.refused.labels(code).inc()


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
