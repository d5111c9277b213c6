"""The service itself, for whoever asks: liveness, readiness, version."""

from typing import Annotated

from fastapi import APIRouter, Response

from fimlora_contract import __version__
from fimlora_contract.service import Health, Version
from fimlora_jobs.durability import Durability
from fimlora_service.http.dependencies import ArtifactsDep, StoreDep, part
from fimlora_service.http.space import SpaceDep
from fimlora_service.http.threads import ThreadRoute, reads_files
from fimlora_service.keys.announcement import access_of
from fimlora_service.keys.gate import Gate
from fimlora_service.operations.health import check_health

UNAVAILABLE_RETRY_AFTER_S = 5
router = APIRouter(tags=["service"], route_class=ThreadRoute)


@router.get("/healthz")
async def liveness() -> Health:
    """Say that the process runs."""
    return Health(status="ok")


@router.get(
    "/readyz",
    responses={503: {"model": Health, "description": "A dependency failed; it is named."}},
)
@reads_files
def readiness(
    artifacts: ArtifactsDep,
    store: StoreDep,
    durability: Annotated[Durability, part("durability")],
    space: SpaceDep,
    gate: Annotated[Gate, part("gate")],
    response: Response,
) -> Health:
    """Say whether jobs can be accepted, and whether somebody would work on them."""
    health = check_health(artifacts, store, durability, space)
    if health.status == "unavailable":
        response.status_code = 503
        response.headers["Retry-After"] = str(UNAVAILABLE_RETRY_AFTER_S)
    return health.model_copy(update={"access": access_of(gate.ring)})


@router.get("/version")
async def version() -> Version:
    """Say which version answers."""
    return Version(fimlora=__version__)
