"""Where the sums of a job's attempts lie, and when they go. The parent process may import this."""

import shutil
from pathlib import Path

from fimlora_jobs.store import JobMissing, JobStore

_SUFFIX = ".sums"


def sums_folder(tmp_dir: Path, job_id: str) -> Path:
    """Where the sums of a job's attempts are."""
    return tmp_dir / f"{job_id}{_SUFFIX}"


def forget_sums(tmp_dir: Path, job_id: str) -> None:
    """Remove what a job that has ended has left."""
    shutil.rmtree(sums_folder(tmp_dir, job_id), ignore_errors=True)


def sweep_sums(tmp_dir: Path, store: JobStore) -> None:
    """Remove the sums of jobs that have ended or are gone."""
    for folder in tmp_dir.glob(f"job_*{_SUFFIX}"):
        job_id = folder.name.removesuffix(_SUFFIX)
        try:
            has_ended = store.status_of(job_id).is_final
        except JobMissing:
            has_ended = True
        if has_ended:
            forget_sums(tmp_dir, job_id)
