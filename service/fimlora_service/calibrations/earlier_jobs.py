"""What earlier jobs spare a request: an open job to share, a result, or statistics."""

from contextlib import suppress

from fimlora_contract.jobs import JobStatus
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import JobRecord
from fimlora_jobs.results.store import STATISTICS
from fimlora_jobs.results.tracked import TrackedArtifacts
from fimlora_jobs.store import JobStore
from fimlora_service.calibrations.job_spec import JobSpec, Reusable


def find_open(spec: JobSpec, store: JobStore) -> str | None:
    """Id of the open job that a request would share, if there is one."""
    job_id = "" if spec.alone else store.shared(spec.digest)
    with suppress(JobMissing):
        if job_id and store.status_of(job_id) in {JobStatus.QUEUED, JobStatus.RUNNING}:
            return job_id
    return None


def find_reusable(spec: JobSpec, store: JobStore, artifacts: TrackedArtifacts) -> Reusable:
    """Earlier jobs that save work, as far as their files are still there."""
    if spec.is_retry:
        return Reusable(measured=_find(spec.statistics_from, store))
    if spec.is_forced:
        return Reusable()
    if (found := store.find_result(spec.digest)) and _is_there(found, artifacts):
        return Reusable(result=found)
    found = store.find_statistics(spec.statistics_digest)
    return Reusable(
        measured=found if found and _is_there(found, artifacts, STATISTICS) else None
    )


def _is_there(record: JobRecord, artifacts: TrackedArtifacts, *file: str) -> bool:
    """Whether a job's result, or one file of it, is still kept."""
    result = record.json_field("result")
    return result is not None and artifacts.exists(result["digest"], *file)


def _find(job_id: str, store: JobStore) -> JobRecord | None:
    try:
        return store.get(job_id) if job_id else None
    except JobMissing:
        return None
