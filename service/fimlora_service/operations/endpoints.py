"""The service itself: liveness, readiness, metrics, version, and who works for it."""

from typing import Annotated

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from fimlora_contract import __version__
from fimlora_contract.service import Health, Version
from fimlora_contract.workers import WorkerPage
from fimlora_jobs.durability import Durability
from fimlora_jobs.workers import WorkerRegistry
from fimlora_service import errors
from fimlora_service.http.dependencies import ArtifactsDep, StoreDep, part, problems
from fimlora_service.http.space import SpaceDep
from fimlora_service.operations.health import check_health
from fimlora_service.operations.metrics import MetricsDep

UNAVAILABLE_RETRY_AFTER_S = 5
router = APIRouter(tags=["service"])


@router.get("/healthz")
async def liveness() -> Health:
    """Say that the process runs."""
    return Health(status="ok")


@router.get(
    "/readyz",
    responses={503: {"model": Health, "description": "A dependency failed; it is named."}},
)
def readiness(
    artifacts: ArtifactsDep,
    store: StoreDep,
    durability: Annotated[Durability, part("durability")],
    space: SpaceDep,
    response: Response,
) -> Health:
    """Say whether jobs can be accepted, and whether somebody would work on them."""
    health = check_health(artifacts, store, durability, space)
    if health.status == "unavailable":
        response.status_code = 503
        response.headers["Retry-After"] = str(UNAVAILABLE_RETRY_AFTER_S)
    return health


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    response_description="The text format of Prometheus.",
)
def show_metrics(metrics: MetricsDep) -> Response:
    """Show figures for Prometheus: requests, jobs, queue, workers."""
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/version")
async def version() -> Version:
    """Say which version answers."""
    return Version(fimlora=__version__)


@router.get("/workers", responses=problems(errors.ValidationFailed, errors.RedisUnavailable))
def list_workers(store: StoreDep) -> WorkerPage:
    """List living workers: device, memory, and the job each is busy with."""
    return WorkerPage(data=WorkerRegistry(store).living())
