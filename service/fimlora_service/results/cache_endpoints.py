"""GET /cache and POST /cache/evict: what is kept, how often it helped, and making room."""

from collections.abc import Iterable

from fastapi import APIRouter

from fimlora_contract.cache import CacheFigures, CacheLimits, EvictionReport, KindFigures
from fimlora_jobs.results.store import STATISTICS
from fimlora_service import errors
from fimlora_service.datasets.uploads import list_uploads
from fimlora_service.http.dependencies import (
    ArtifactsDep,
    DataFolderDep,
    SettingsDep,
    problems,
)
from fimlora_service.http.threads import reads_files
from fimlora_service.keys.gate import check_operator
from fimlora_service.keys.principal import ADMINISTERS, PrincipalDep
from fimlora_service.keys.routes import ScopedRoute
from fimlora_service.results.eviction import evict, limits_of

REFUSALS = (errors.ValidationFailed, errors.StorageUnavailable, errors.RedisUnavailable)
router = APIRouter(tags=["service"], route_class=ScopedRoute)


@router.get("/cache", dependencies=[ADMINISTERS], responses=problems(*REFUSALS))
@reads_files
def show_cache(
    artifacts: ArtifactsDep,
    data_folder: DataFolderDep,
    settings: SettingsDep,
    principal: PrincipalDep,
) -> CacheFigures:
    """Tell what is kept, how often it spared a calibration, and what was evicted."""
    check_operator(principal)
    results = list(artifacts.list())
    statistics = [r.sizes[STATISTICS] for r in results if STATISTICS in r.sizes]
    counted = artifacts.usage.figures()
    there = {result.digest for result in results}
    return CacheFigures(
        results=_kind(result.size for result in results),
        statistics=_kind(statistics),
        uploads=_kind(upload.size for upload in list_uploads(data_folder.uploads)),
        pinned=len(artifacts.usage.pinned() & there),
        hits=counted.get("cached", 0) + counted.get("shared", 0),
        replanned=counted.get("replanned", 0),
        misses=counted.get("measured", 0),
        evicted=KindFigures(
            entries=counted.get("evicted_entries", 0), bytes=counted.get("evicted_bytes", 0)
        ),
        limits=CacheLimits(
            max_bytes=settings.cache_max_bytes or None,
            max_age_days=settings.cache_max_age_days or None,
        ),
    )


@router.post("/cache/evict", dependencies=[ADMINISTERS], responses=problems(*REFUSALS))
def evict_now(
    artifacts: ArtifactsDep, settings: SettingsDep, principal: PrincipalDep
) -> EvictionReport:
    """Delete results beyond the limits now, and not at the next round."""
    check_operator(principal)
    evicted = evict(artifacts, limits_of(settings))
    return EvictionReport(entries=evicted.entries, bytes=evicted.bytes)


def _kind(sizes: Iterable[int]) -> KindFigures:
    listed = list(sizes)
    return KindFigures(entries=len(listed), bytes=sum(listed))
