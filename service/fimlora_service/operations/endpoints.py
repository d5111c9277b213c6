"""Liveness, readiness, metrics and version."""

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis.exceptions import RedisError

from fimlora_contract import __version__
from fimlora_contract.service import Health, Version
from fimlora_contract.workers import WorkerPage
from fimlora_jobs.results.store import ArtifactStore, StorageUnavailable
from fimlora_jobs.workers import WorkerRegistry
from fimlora_service import errors
from fimlora_service.http.dependencies import ArtifactsDep, MetricsDep, StoreDep, problems

OK = "ok"
RETRY_AFTER_S = 5
router = APIRouter(tags=["service"])


@router.get("/healthz")
async def liveness() -> Health:
    """Say that the process runs."""
    return Health(status="ok")


@router.get(
    "/readyz",
    responses={503: {"model": Health, "description": "A dependency failed; it is named."}},
)
def readiness(artifacts: ArtifactsDep, store: StoreDep, response: Response) -> Health:
    """Say whether jobs can be accepted, and whether somebody would work on them."""
    checks = {"artifacts": check_storage(artifacts), "redis": OK, "workers": OK}
    try:
        living = WorkerRegistry(store).living()
        checks["workers"] = OK if living else "no live worker; jobs wait until one starts"
    except RedisError as error:
        checks |= {"redis": f"does not answer: {type(error).__name__}", "workers": "unknown"}
    status = judge(checks)
    if status == "unavailable":
        response.status_code = 503
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return Health(status=status, checks=checks)


def judge(checks: dict[str, str]) -> Literal["ok", "degraded", "unavailable"]:
    """Without workers jobs wait; without Redis or disk none can be accepted."""
    if checks["redis"] != OK or checks["artifacts"] != OK:
        return "unavailable"
    return "ok" if checks["workers"] == OK else "degraded"


def check_storage(artifacts: ArtifactStore) -> str:
    """Whether a result could be kept now."""
    try:
        artifacts.check()
    except StorageUnavailable as error:
        return str(error)
    return OK


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
