"""Whether jobs can be accepted, and whether somebody would work on them."""

from typing import Literal

from redis.exceptions import RedisError

from fimlora_contract.service import Health
from fimlora_jobs.results.store import ArtifactStore, StorageUnavailable
from fimlora_jobs.store import JobStore
from fimlora_jobs.workers import WorkerRegistry

OK = "ok"


def check_health(artifacts: ArtifactStore, store: JobStore) -> Health:
    """Look at everything that a job needs; what fails is named."""
    checks = {"artifacts": check_storage(artifacts), "redis": OK, "workers": OK}
    try:
        living = WorkerRegistry(store).living()
        checks["workers"] = OK if living else "no live worker; jobs wait until one starts"
    except RedisError as error:
        checks |= {"redis": f"does not answer: {type(error).__name__}", "workers": "unknown"}
    return Health(status=judge(checks), checks=checks)


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
