"""GET /workers: who is at work, on what device."""

from fastapi import APIRouter

from fimlora_contract.workers import WorkerPage, WorkerRegistry
from fimlora_service import errors
from fimlora_service.dependencies import StoreDep, problems

router = APIRouter(tags=["service"])


@router.get("/workers", responses=problems(errors.RedisUnavailable))
def list_workers(store: StoreDep) -> WorkerPage:
    """List living workers: device, memory, and the job each is busy with."""
    return WorkerPage(data=WorkerRegistry(store).living())
