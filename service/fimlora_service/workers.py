"""GET /workers: who is at work, on what device."""

from fastapi import APIRouter

from fimlora_contract.workers import WorkerPage, WorkerRegistry
from fimlora_service import errors
from fimlora_service.dependencies import StoreDep, problems
from fimlora_service.queries import StrictQueryRoute

router = APIRouter(tags=["service"], route_class=StrictQueryRoute)


@router.get("/workers", responses=problems(errors.ValidationFailed, errors.RedisUnavailable))
def list_workers(store: StoreDep) -> WorkerPage:
    """List living workers: device, memory, and the job each is busy with."""
    return WorkerPage(data=WorkerRegistry(store).living())
