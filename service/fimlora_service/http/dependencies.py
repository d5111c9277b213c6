"""What any handler may be given: parts of the running service, and common parameters.

What belongs to one noun is declared there, by the same `part`.
"""

from threading import Event
from typing import Annotated, Any

from fastapi import Depends, Request

from fimlora_contract.problems import PROBLEMS
from fimlora_jobs.data_folder import DataFolder
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.store import JobStore
from fimlora_service.errors import JobGone, JobNotFound, ServiceError
from fimlora_service.http.headers import media_type_of
from fimlora_service.http.problems import MEDIA_TYPE
from fimlora_service.settings import Settings

PROBLEM_REFERENCE = {"$ref": "#/components/schemas/Problem"}

# Dependencies that only look something up are `async def`: a `def` is sent to a thread, and a
# dozen of those per request cost more than the request.


def part(name: str) -> Any:
    """Depend on a part of the running service, by its name in `State`."""

    async def read(request: Request) -> Any:
        return getattr(request.state, name)

    return Depends(read)


async def _prefix(request: Request) -> str:
    return "/v1" if request.url.path.startswith("/v1/") else ""


async def require_json(request: Request) -> None:
    """Refuse a body that does not say it is JSON."""
    media_type_of(request, allowed=["application/json"])


SettingsDep = Annotated[Settings, part("settings")]
StoppingDep = Annotated[Event, part("stopping")]
StoreDep = Annotated[JobStore, part("store")]
ArtifactsDep = Annotated[TrackedArtifacts, part("artifacts")]
DataFolderDep = Annotated[DataFolder, part("data_folder")]
PrefixDep = Annotated[str, Depends(_prefix)]


def problems(*kinds: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI documentation of the errors a route may answer with."""
    documented: dict[int | str, dict[str, Any]] = {}
    # Wherever a job may be unknown, it may also be known to be forgotten.
    gone = (JobGone,) if JobNotFound in kinds else ()
    for kind in (*kinds, *gone):
        known = PROBLEMS[kind.code]
        entry = documented.setdefault(
            known.status,
            {"description": "", "content": {MEDIA_TYPE: {"schema": PROBLEM_REFERENCE}}},
        )
        text = f"`{kind.code}`: {known.title}."
        entry["description"] = f"{entry['description']} {text}".strip()
    return documented
