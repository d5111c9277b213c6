"""What handlers are given: parts of the running service, and common parameters."""

from threading import Event
from typing import Annotated, Any, TypedDict

from fastapi import Depends, Path, Request

from fimlora_contract.problems import PROBLEMS
from fimlora_jobs.data_folder import DataFolder
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.store import JobStore
from fimlora_service.calibrations.submission import Submission
from fimlora_service.calibrations.submission_limit import SubmissionLimit
from fimlora_service.errors import JobGone, JobNotFound, ServiceError
from fimlora_service.http.problems import MEDIA_TYPE
from fimlora_service.jobs.cached_answers import JobViews
from fimlora_service.operations.metrics import Metrics
from fimlora_service.plans.score_cache import ScoreCache
from fimlora_service.resolve.resolver import Resolver
from fimlora_service.settings import Settings


class State(TypedDict):
    """What lives as long as the service runs."""

    settings: Settings
    stopping: Event
    data_folder: DataFolder
    artifacts: TrackedArtifacts
    store: JobStore
    job_views: JobViews
    score_cache: ScoreCache
    resolver: Resolver
    submission: Submission
    submission_limit: SubmissionLimit
    metrics: Metrics


# Dependencies that only look something up are `async def`: a `def` is sent to a thread, and a
# dozen of those per request cost more than the request.


def _part(name: str) -> Any:
    async def read(request: Request) -> Any:
        return getattr(request.state, name)

    return Depends(read)


StoppingDep = Annotated[Event, _part("stopping")]
SettingsDep = Annotated[Settings, _part("settings")]
DataFolderDep = Annotated[DataFolder, _part("data_folder")]
ArtifactsDep = Annotated[TrackedArtifacts, _part("artifacts")]
ScoreCacheDep = Annotated[ScoreCache, _part("score_cache")]
StoreDep = Annotated[JobStore, _part("store")]
JobViewsDep = Annotated[JobViews, _part("job_views")]
SubmissionDep = Annotated[Submission, _part("submission")]
SubmissionLimitDep = Annotated[SubmissionLimit, _part("submission_limit")]
MetricsDep = Annotated[Metrics, _part("metrics")]
ResolverDep = Annotated[Resolver, _part("resolver")]
JobId = Annotated[str, Path(max_length=64, description="Id of a job.", examples=["job_0"])]


async def _prefix(request: Request) -> str:
    return "/v1" if request.url.path.startswith("/v1/") else ""


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


PROBLEM_REFERENCE = {"$ref": "#/components/schemas/Problem"}
