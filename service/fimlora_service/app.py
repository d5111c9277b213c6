"""The application: parts are made when it starts, and handed to handlers by its state."""

import logging
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from fimlora_contract import __version__
from fimlora_jobs.connection import impatient_redis, why_away
from fimlora_jobs.data_folder import DataFolder
from fimlora_jobs.durability import Durability
from fimlora_jobs.outbox import Outbox
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.results.kept_records import KeptRecords
from fimlora_jobs.results.object_store import open_artifacts
from fimlora_jobs.results.rebuilding import Rebuilding
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.results.usage import ResultUsage
from fimlora_jobs.store import JobStore
from fimlora_jobs.store_watch import StoreWatch
from fimlora_service.adapters import endpoints as adapters
from fimlora_service.calibrations import endpoints as calibrations
from fimlora_service.calibrations.live_locks import LOCK_TTL_S, LiveLocks
from fimlora_service.comparisons import endpoints as comparisons
from fimlora_service.datasets import endpoints as datasets
from fimlora_service.evaluations import endpoints as evaluations
from fimlora_service.http.durable_answers import DurableAnswersMiddleware
from fimlora_service.http.hosts import HostMiddleware
from fimlora_service.http.middleware import (
    BodyLimitMiddleware,
    HeadMiddleware,
    RequestIdMiddleware,
    is_watched,
)
from fimlora_service.http.openapi import document_problems, operation_id
from fimlora_service.http.origins import OriginMiddleware, add_cors
from fimlora_service.http.problems import install_handlers
from fimlora_service.http.security_headers import SecurityHeadersMiddleware
from fimlora_service.http.slow_bodies import SlowBodyMiddleware
from fimlora_service.http.sound_heads import SoundHeadMiddleware
from fimlora_service.jobs import endpoints as jobs
from fimlora_service.keys import endpoints as keys
from fimlora_service.keys.announcement import announce_access
from fimlora_service.models import endpoints as models
from fimlora_service.operations import endpoints as operations
from fimlora_service.operations import figures_endpoints
from fimlora_service.operations.background import (
    LOOK_INTERVAL_S,
    REBUILT_WITHIN_S,
    RETENTION_INTERVAL_S,
    forget,
    reap,
    repeating,
)
from fimlora_service.operations.metrics import Metrics, MetricsMiddleware
from fimlora_service.operations.store_metrics import DiskCollector, StoreCollector
from fimlora_service.plans import endpoints as plans
from fimlora_service.rank_patterns import endpoints as rank_patterns
from fimlora_service.reports import endpoints as reports
from fimlora_service.results import cache_endpoints
from fimlora_service.results import endpoints as results
from fimlora_service.results.eviction import EVICTION_INTERVAL_S, limits_of, make_room
from fimlora_service.settings import Settings
from fimlora_service.state import State, make_state
from fimlora_service.web import endpoints as web
from fimlora_service.webhooks import endpoints as webhooks
from fimlora_service.webhooks.delivery import WebhookSender
from fimlora_service.webhooks.posting import Poster
from fimlora_service.webhooks.receivers import Receivers

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)
DESCRIPTION = "Decide how much LoRA rank each weight matrix gets, before training starts."
PARTS = (
    calibrations, comparisons, evaluations, jobs, results, reports, plans, rank_patterns, datasets,
    models, adapters, cache_endpoints, keys, webhooks, operations, figures_endpoints,
)  # fmt: skip


def create_app(
    settings: Settings | None = None,
    *,
    stopping: Event | None = None,
    traces: "TracerProvider | None" = None,
) -> FastAPI:
    """Make the application; nothing is opened before it starts.

    Args:
        settings: Configuration; read from the environment when left out.
        stopping: Set by the server when it is told to stop: whoever waits is let go.
        traces: What makes a span of every request; ``None`` for none.
    """
    settings, stopping = settings or Settings.read(), stopping or Event()
    metrics = Metrics()
    app = FastAPI(
        title="fimlora",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lambda _: running(settings, stopping, metrics),
        docs_url=None,  # the framework's pages load theirs from a CDN
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
        telemetry=telemetry_of(traces),
    )
    add_middleware(app, settings, metrics)
    install_handlers(app)
    add_routes(app)
    document_problems(app)
    return app


def telemetry_of(traces: "TracerProvider | None") -> TelemetryConfig:
    """How the framework makes spans: of requests, but for those of who watches over us."""
    config: TelemetryConfig = {"metrics": False, "logs": False, "operation_spans": False}
    if traces is None:
        return {**config, "tracing": False}
    return {**config, "tracer_provider": traces, "exclude": is_watched}


@asynccontextmanager
async def running(
    settings: Settings, stopping: Event, metrics: Metrics
) -> AsyncIterator[State]:
    """Everything that is open while the application runs."""
    data_folder = DataFolder.create(settings.data_dir)
    with (
        closing(impatient_redis(settings.redis_url)) as redis,
        closing(impatient_redis(settings.redis_url)) as queue_redis,
        closing(impatient_redis(settings.redis_url)) as disk_redis,
        closing(
            Durability(
                disk_redis, key=JobStore(redis).key("on_disk"), folder=settings.store_dir
            )
        ) as durability,
    ):
        say_what_is_promised(durability)
        store, transport = JobStore(redis), RqTransport(queue_redis)
        artifacts, locks = open_results(settings, data_folder, store), LiveLocks(store)
        rebuilding = Rebuilding(artifacts, days=settings.job_retention_days)
        with (
            repeating("locks", locks.renew, every_s=LOCK_TTL_S / 4),
            repeated_steps(settings, transport, artifacts, metrics, durability, rebuilding),
            metrics.showing(StoreCollector(store, transport)),
            metrics.showing(DiskCollector(data_folder.root)),
        ):
            state = make_state(
                settings,
                stopping,
                data_folder,
                artifacts,
                transport,
                locks,
                metrics,
                durability,
                rebuilding,
            )
            announce_access(state["gate"].ring, host=settings.host)
            yield state


def say_what_is_promised(durability: Durability) -> None:
    """Log once whether what is accepted survives a loss of power; nobody waits for it."""

    def say(asked: "Future[None]") -> None:
        if error := asked.exception():
            logger.warning("store.away", extra={"reason": why_away(error)})
        else:
            logger.info("store.durability", extra={"promise": durability.promise})

    durability.settled().add_done_callback(say)


@contextmanager
def repeated_steps(
    settings: Settings,
    transport: RqTransport,
    artifacts: TrackedArtifacts,
    metrics: Metrics,
    durability: Durability,
    rebuilding: Rebuilding,
) -> Iterator[None]:
    """What is done beside answering, each in a thread of its own."""
    store = artifacts.usage.store
    receivers = Receivers(settings.webhook_origins, settings.webhook_near_origins)
    sender = WebhookSender(
        Outbox(store),
        poster=Poster(receivers),
        keys=settings.webhook_keys,
        tries=metrics.webhooks,
        settled=durability.settled,
    )
    reaping = partial(reap, store, transport, every_s=settings.reaper_interval_s)
    kept, days = KeptRecords(artifacts.notes), settings.job_retention_days
    forgetting = partial(forget, store, kept, days=days)
    evicting = partial(make_room, artifacts, limits_of(settings))
    watch = StoreWatch(settings.redis_url)
    with (
        repeating("rebuild", rebuilding.look, every_s=LOOK_INTERVAL_S, first_s=0),
        repeating("store", watch.look, every_s=LOOK_INTERVAL_S, first_s=0),
        repeating("reaper", reaping, every_s=settings.reaper_interval_s),
        repeating("webhooks", sender.deliver_due, every_s=settings.webhook_interval_s),
        closing(sender),
        repeating("retention", forgetting, every_s=RETENTION_INTERVAL_S),
        repeating("eviction", evicting, every_s=EVICTION_INTERVAL_S),
    ):
        rebuilding.tried.wait(REBUILT_WITHIN_S)  # mostly it is quicker than the first question
        yield


def add_middleware(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """Surround every request; what is added last is outermost."""
    app.add_middleware(DurableAnswersMiddleware)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(SlowBodyMiddleware, patience_s=settings.request_timeout_s)
    app.add_middleware(
        BodyLimitMiddleware,
        limit=settings.max_body_bytes,
        upload_limit=settings.max_upload_bytes,
    )
    app.add_middleware(OriginMiddleware, allowed=settings.page_origins)
    add_cors(app, settings.page_origins)
    app.add_middleware(HostMiddleware, allowed=settings.host_patterns)
    app.add_middleware(SoundHeadMiddleware)
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    app.add_middleware(RequestIdMiddleware)


def add_routes(app: FastAPI) -> None:
    """Every route, and once more under its version."""
    app.include_router(web.router)
    # Each part by itself: a router around them has all its routes analysed once more.
    for part in PARTS:
        app.include_router(part.router)
    for part in PARTS:
        app.include_router(part.router, prefix="/v1", include_in_schema=False)


def open_results(
    settings: Settings, data_folder: DataFolder, store: JobStore
) -> TrackedArtifacts:
    """What keeps the results."""
    artifacts = open_artifacts(settings.artifacts_url, data_dir=data_folder.root)
    return TrackedArtifacts(artifacts, ResultUsage(store))
