"""What lives as long as the service runs; handlers are given parts of it."""

from collections.abc import Callable
from functools import lru_cache
from threading import Event
from typing import TYPE_CHECKING, TypedDict

from fimlora_jobs.data_folder import DataFolder, FreeSpace
from fimlora_jobs.durability import Durability
from fimlora_jobs.keys import KeyStore
from fimlora_jobs.open_limits import OpenLimits
from fimlora_jobs.queue import RqTransport
from fimlora_jobs.results.rebuilding import Rebuilding
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.store import JobStore
from fimlora_service.calibrations.live_locks import LiveLocks
from fimlora_service.calibrations.submission import Submission
from fimlora_service.calibrations.submission_limit import SubmissionLimit
from fimlora_service.http.turns import Turns
from fimlora_service.http.waiting import WaitingRoom
from fimlora_service.jobs.cached_answers import JobViews
from fimlora_service.keys.gate import Gate
from fimlora_service.keys.pepper import PepperFile
from fimlora_service.keys.rates import RateLimits
from fimlora_service.keys.ring import KeyRing
from fimlora_service.operations.metrics import Metrics
from fimlora_service.plans.measured_jobs import MeasuredJobs
from fimlora_service.plans.score_cache import ScoreCache
from fimlora_service.reports.kept import KeptDrawings
from fimlora_service.resolve.resolver import Resolver
from fimlora_service.resolve.tenants import tenant_of
from fimlora_service.settings import Settings
from fimlora_service.web.files import PageFiles

if TYPE_CHECKING:
    from fimlora_service.resolve.hub import Hub

# Each may take some hundred megabytes while its rows are looked through.
UPLOADS_CHECKED_AT_ONCE = 2


class State(TypedDict):
    """The parts by the names that dependencies ask for."""

    settings: Settings
    stopping: Event
    data_folder: DataFolder
    artifacts: TrackedArtifacts
    store: JobStore
    gate: Gate
    durability: Durability
    space: FreeSpace
    job_views: JobViews
    score_cache: ScoreCache
    measured_jobs: MeasuredJobs
    drawings: KeptDrawings
    resolver: Resolver
    submission: Submission
    submission_limit: SubmissionLimit
    adapter_turns: Turns
    upload_turns: Turns
    waiting_room: WaitingRoom
    metrics: Metrics
    rebuilding: Rebuilding
    page_files: PageFiles


def make_state(
    settings: Settings,
    stopping: Event,
    data_folder: DataFolder,
    results: TrackedArtifacts,
    transport: RqTransport,
    locks: LiveLocks,
    metrics: Metrics,
    durability: Durability,
    rebuilding: Rebuilding,
) -> State:
    """Put the parts together."""
    store = results.usage.store
    token = settings.hub_token
    tenant = tenant_of(token.get_secret_value() if token else None)
    resolver = Resolver(
        data_folder,
        hub_access(settings, data_folder),
        tenant=tenant,
        allowed=settings.allowed,
        max_tokens=settings.max_calibration_tokens,
    )
    space = FreeSpace(data_folder.root, floor=settings.min_free_bytes)
    submission = Submission(
        store,
        transport,
        resolver,
        results,
        locks,
        webhook_origins=settings.webhook_origins,
        limits=OpenLimits(settings.max_open_jobs, settings.max_open_jobs_per_tenant),
        space=space,
    )
    return State(
        settings=settings,
        stopping=stopping,
        data_folder=data_folder,
        artifacts=results,
        store=store,
        gate=Gate(
            key_ring(settings, data_folder, store), RateLimits(store.redis, settings.rates)
        ),
        durability=durability,
        space=space,
        job_views=JobViews(store),
        score_cache=ScoreCache(),
        measured_jobs=MeasuredJobs(store, settings.allowed),
        drawings=KeptDrawings(),
        resolver=resolver,
        submission=submission,
        submission_limit=SubmissionLimit(),
        adapter_turns=Turns(),
        upload_turns=Turns(UPLOADS_CHECKED_AT_ONCE),
        waiting_room=WaitingRoom(settings.max_waiting_per_client),
        metrics=metrics,
        rebuilding=rebuilding,
        page_files=PageFiles(),
    )


def key_ring(settings: Settings, data_folder: DataFolder, store: JobStore) -> KeyRing:
    """The keys that let somebody in."""
    given = settings.admin_key
    return KeyRing(
        KeyStore(store),
        PepperFile(data_folder.root / "keys"),
        admin_key=given.get_secret_value() if given else None,
    )


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
