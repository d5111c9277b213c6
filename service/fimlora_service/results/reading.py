"""What there is to read of a result: what the record says of it, and its files."""

import json
from contextlib import suppress

from redis.exceptions import RedisError

from fimlora_contract.artifacts import Artifact, JobResult
from fimlora_contract.jobs import CalibrationResult, Job, JobStatus
from fimlora_contract.rank_patterns import RankPattern
from fimlora_contract.signatures import NAME as SIGNATURE
from fimlora_jobs.allow_lists import Allowed
from fimlora_jobs.record import JobRecord
from fimlora_jobs.results.store import STATISTICS, ResultMissing
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_service import errors

NAMES = frozenset({
    "adapter_config.json",
    "compare.json",
    "compare.svg",
    "curves.csv",
    "evaluation.json",
    "adapter_model.safetensors",
    "rank_map.json",
    "rank_map.svg",
    "report.html",
    "report.svg",
    "runs.csv",
    SIGNATURE,
    STATISTICS,
})  # fmt: skip


def result_of(job: Job) -> JobResult:
    """The result of a job, or the reason why there is none."""
    if job.result is not None:
        return job.result
    if job.status is JobStatus.CANCELED:
        raise errors.JobCanceled(f"job {job.id!r} was canceled")
    if job.error is not None:
        raise errors.JobFailed(f"job {job.id!r} failed: {job.error.code}: {job.error.detail}")
    raise errors.JobNotFinished(f"job {job.id!r} is {job.status}")


def usable(record: JobRecord, allowed: Allowed) -> JobRecord:
    """A job from which something new is made, if the operator's lists still have what it used.

    Raises:
        NotAllowed: They do not.
    """
    allowed.check_request(record.shown_request)
    return record


def plan_of(job: Job) -> CalibrationResult:
    """The plan that a job made, or the reason why there is none."""
    result = result_of(job)
    if not isinstance(result, CalibrationResult):
        raise errors.NoPattern(
            f"job {job.id!r} is of kind {job.kind} and has no plan of its own"
        )
    return result


def find_artifact(result: JobResult, name: str) -> Artifact:
    """An artefact by name; only a name of the closed set is ever looked for."""
    listed = {a.name: a for a in result.artifacts if a.name in NAMES}
    if name not in listed:
        raise errors.ArtifactNotFound(f"no artefact of that name; there are {sorted(listed)}")
    return listed[name]


def read_pattern(artifacts: TrackedArtifacts, digest: str) -> RankPattern:
    """A committed result by its content address.

    Raises:
        NoPattern: There is none.
    """
    with suppress(RedisError):  # what never changes can be read without it
        artifacts.use(digest)
    try:
        rank_map, config = (
            json.loads(artifacts.store.local(digest, f"{name}.json").read_bytes())
            for name in ("rank_map", "adapter_config")
        )
    except (ResultMissing, FileNotFoundError):
        raise errors.NoPattern(f"no result with digest {digest}") from None
    return RankPattern(digest=digest, adapter_config=config, rank_map=rank_map)
