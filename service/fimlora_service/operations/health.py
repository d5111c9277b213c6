"""Whether jobs can be accepted, and whether somebody would work on them."""

from typing import Literal

from redis.exceptions import RedisError

from fimlora_contract.service import Health
from fimlora_jobs.connection import why_away
from fimlora_jobs.data_folder import FreeSpace
from fimlora_jobs.durability import Durability
from fimlora_jobs.results.store import ArtifactStore, StorageUnavailable
from fimlora_jobs.store import JobStore
from fimlora_jobs.workers import WorkerRegistry

OK = "ok"
NEEDED = ("redis", "artifacts", "disk")


def check_health(
    artifacts: ArtifactStore, store: JobStore, durability: Durability, space: FreeSpace
) -> Health:
    """Look at everything that a job needs; what fails is named."""
    checks = {
        "artifacts": check_storage(artifacts),
        "disk": check_space(space),
        "redis": check_store(durability),
        "workers": check_workers(store),
    }
    return Health(status=judge(checks), checks=checks, durability=durability.promise)


def judge(checks: dict[str, str]) -> Literal["ok", "degraded", "unavailable"]:
    """Without workers jobs wait; without Redis or disk none can be accepted."""
    if any(checks[name] != OK for name in NEEDED):
        return "unavailable"
    return "ok" if checks["workers"] == OK else "degraded"


def check_store(durability: Durability) -> str:
    """Whether a job could be put on record now."""
    try:
        durability.probe()
    except RedisError as error:
        return why_away(error)
    return OK


def check_workers(store: JobStore) -> str:
    """Whether somebody would work on a job."""
    try:
        living = WorkerRegistry(store).living()
    except RedisError:
        return "unknown"
    return OK if living else "no live worker; jobs wait until one starts"


def check_space(space: FreeSpace) -> str:
    """Whether as much is free as the operator wants."""
    try:
        return space.lacks() or OK
    except OSError as error:
        return f"cannot be asked: {error.strerror}"


def check_storage(artifacts: ArtifactStore) -> str:
    """Whether a result could be kept now."""
    try:
        artifacts.check()
    except StorageUnavailable as error:
        return str(error)
    return OK
