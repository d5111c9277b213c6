"""The application: parts are made when it starts, and handed to handlers by its state."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import lru_cache, partial
from threading import Event
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fimlora_contract import __version__
from fimlora_contract.problems import Problem
from fimlora_jobs.data_folder import DataFolder
from fimlora_jobs.outbox import Outbox
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.results.object_store import open_artifacts
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.results.usage import ResultIndex
from fimlora_jobs.store import JobStore
from fimlora_service.calibrations import endpoints as calibrate
from fimlora_service.calibrations.submission import Submission
from fimlora_service.calibrations.submission_limit import SubmissionLimit
from fimlora_service.datasets import endpoints as datasets
from fimlora_service.http.dependencies import State
from fimlora_service.http.middleware import (
    BodyLimitMiddleware,
    HeadMiddleware,
    RequestIdMiddleware,
)
from fimlora_service.http.problems import install_handlers
from fimlora_service.jobs import endpoints as jobs
from fimlora_service.jobs import event_stream
from fimlora_service.jobs.cached_answers import JobViews
from fimlora_service.models import endpoints as models
from fimlora_service.operations import endpoints as health
from fimlora_service.operations.background import RETENTION_INTERVAL_S, forget, reap, repeating
from fimlora_service.operations.metrics import Metrics, MetricsMiddleware, StoreCollector
from fimlora_service.plans import endpoints as plans
from fimlora_service.plans.score_cache import ScoreCache
from fimlora_service.rank_patterns import endpoints as rank_patterns
from fimlora_service.resolve.resolver import Resolver
from fimlora_service.resolve.tenants import tenant_of
from fimlora_service.results import cache_endpoints
from fimlora_service.results import endpoints as artifacts
from fimlora_service.results.eviction import EVICTION_INTERVAL_S, limits_of, make_room
from fimlora_service.settings import Settings
from fimlora_service.webhooks.delivery import Courier

if TYPE_CHECKING:
    from fimlora_service.resolve.hub import Hub

DESCRIPTION = "Decide how much LoRA rank each weight matrix gets, before training starts."
PARTS = (
    calibrate, jobs, plans, rank_patterns, event_stream, artifacts, datasets, models, cache_endpoints, health,
)  # fmt: skip


def create_app(settings: Settings | None = None, *, stopping: Event | None = None) -> FastAPI:
    """Make the application; nothing is opened before it starts.

    Args:
        settings: Configuration; read from the environment when left out.
        stopping: Set by the server when it is told to stop: whoever waits is let go.
    """
    settings, stopping = settings or Settings(), stopping or Event()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        data_folder = DataFolder.create(settings.data_dir)
        with (
            closing(connect(settings.redis_url)) as redis,
            closing(connect(settings.redis_url)) as queue_redis,
        ):
            store, transport = JobStore(redis), RqTransport(queue_redis)
            collector = StoreCollector(store, transport)
            courier = Courier(Outbox(store), settings, metrics)
            reaping = partial(reap, store, transport)
            results = open_results(settings, data_folder, store)
            evicting = partial(make_room, results, limits_of(settings))
            forgetting = partial(forget, store, days=settings.job_retention_days)
            with (
                repeating("reaper", reaping, every_s=settings.reaper_interval_s),
                repeating("webhooks", courier.deliver_due, every_s=settings.webhook_interval_s),
                repeating("retention", forgetting, every_s=RETENTION_INTERVAL_S),
                repeating("eviction", evicting, every_s=EVICTION_INTERVAL_S),
            ):
                metrics.registry.register(collector)
                yield make_state(settings, stopping, data_folder, results, transport, metrics)
            metrics.registry.unregister(collector)

    app = FastAPI(
        title="fimlora",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
    )
    app.add_middleware(HeadMiddleware)
    app.add_middleware(
        BodyLimitMiddleware,
        limit=settings.max_body_bytes,
        upload_limit=settings.max_upload_bytes,
    )
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    app.add_middleware(RequestIdMiddleware)
    install_handlers(app)
    # Each part by itself: a router around them has all its routes analysed once more.
    for part in PARTS:
        app.include_router(part.router)
    for part in PARTS:
        app.include_router(part.router, prefix="/v1", include_in_schema=False)
    document_problems(app)
    return app


def connect(url: str) -> Redis:
    """A client that fails fast: a request must not wait for a server that is away."""
    return Redis.from_url(
        url, socket_connect_timeout=0.5, socket_timeout=2.0, retry=Retry(NoBackoff(), 0)
    )


def connect_storage(url: str, **options: Any) -> tuple[Any, str]:
    """A file system of fsspec's, which is imported only where results are kept in one."""
    from fsspec.core import url_to_fs

    connected: tuple[Any, str] = url_to_fs(url, **options)
    return connected


def open_results(
    settings: Settings, data_folder: DataFolder, store: JobStore
) -> TrackedArtifacts:
    """What keeps the results."""
    artifacts = open_artifacts(
        settings.artifacts_url, data_dir=data_folder.root, connect=connect_storage
    )
    return TrackedArtifacts(artifacts, ResultIndex(store))


def hub_access(settings: Settings, data_folder: DataFolder) -> "Callable[[], Hub]":
    """Gives the hub, made when it is first asked for: its library takes a while to import."""

    @lru_cache(maxsize=1)
    def hub() -> "Hub":
        from fimlora_service.resolve.hub import Hub

        token = settings.hub_token
        return Hub(
            endpoint=settings.hub_endpoint,
            token=token.get_secret_value() if token else None,
            cache=data_folder.hub,
            timeout_s=settings.hub_timeout_s,
        )

    return hub


def make_state(
    settings: Settings,
    stopping: Event,
    data_folder: DataFolder,
    results: TrackedArtifacts,
    transport: RqTransport,
    metrics: Metrics,
) -> State:
    """The parts that handlers are given."""
    store = results.index.store
    token = settings.hub_token
    tenant = tenant_of(token.get_secret_value() if token else None)
    resolver = Resolver(data_folder, hub_access(settings, data_folder), tenant=tenant)
    submission = Submission(
        store, transport, resolver, results, webhook_hosts=settings.webhook_hosts
    )
    return State(
        settings=settings,
        stopping=stopping,
        data_folder=data_folder,
        artifacts=results,
        store=store,
        job_views=JobViews(store),
        score_cache=ScoreCache(),
        resolver=resolver,
        submission=submission,
        submission_limit=SubmissionLimit(),
        metrics=metrics,
    )


def operation_id(route: APIRoute) -> str:
    """The handler's name names the operation."""
    return route.name


def document_problems(app: FastAPI) -> None:
    """Put the problem document into the API reference, in place of the framework's own."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schemas = schema["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        schemas["Problem"] = Problem.model_json_schema()
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
