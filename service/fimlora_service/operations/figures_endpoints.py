"""What the service is at: figures for Prometheus, and who works for it."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from fimlora_contract.workers import WorkerPage
from fimlora_jobs.workers import WorkerRegistry
from fimlora_service import errors
from fimlora_service.http.dependencies import StoreDep, problems
from fimlora_service.keys.access import job_or_none
from fimlora_service.keys.principal import READS, PrincipalDep
from fimlora_service.keys.routes import GuardedRoute
from fimlora_service.operations.metrics import MetricsDep

router = APIRouter(tags=["service"], route_class=GuardedRoute)


@router.get(
    "/metrics",
    dependencies=[READS],
    response_class=PlainTextResponse,
    response_description="The text format of Prometheus.",
    responses=problems(errors.ValidationFailed),
)
def show_metrics(metrics: MetricsDep) -> Response:
    """Show figures for Prometheus: requests, jobs, queue, workers."""
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/workers",
    dependencies=[READS],
    responses=problems(errors.ValidationFailed, errors.RedisUnavailable),
)
def list_workers(store: StoreDep, principal: PrincipalDep) -> WorkerPage:
    """List living workers: device, memory, and the job each is busy with, if it is yours."""
    living = WorkerRegistry(store).living()
    shown = [
        worker.model_copy(update={"job_id": job_or_none(worker.job_id, principal, store)})
        for worker in living
    ]
    return WorkerPage(data=shown)
