"""Folders that attempts work in, and what is left of those that were killed.

The parent process imports this: nothing here may load torch.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from fimlora_contract.jobs import JobStatus
from fimlora_jobs.attempts import is_hand, job_id_of, parse_rq_job_id
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.runs import Runs
from fimlora_jobs.store import JobStore

_PROGRESS = ".sums"


@contextmanager
def work_folder(tmp_dir: Path, rq_id: str) -> Iterator[Path]:
    """A folder of an attempt's or a hand's own, gone at the end whatever happens."""
    folder = tmp_dir / f"{rq_id}.{uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def progress_folder(tmp_dir: Path, job_id: str) -> Path:
    """Where a job's attempts save how far they have measured."""
    return tmp_dir / f"{job_id}{_PROGRESS}"


def remove_progress(tmp_dir: Path, job_id: str) -> None:
    """Remove what the attempts of a job that has ended have saved."""
    shutil.rmtree(progress_folder(tmp_dir, job_id), ignore_errors=True)


def remove_dead_folders(tmp_dir: Path, store: JobStore) -> None:
    """Remove the folders of attempts that were killed before they could."""
    for folder in tmp_dir.glob("job_*-*.*"):
        if not _is_running(folder.name, store):
            shutil.rmtree(folder, ignore_errors=True)


def remove_ended_progress(tmp_dir: Path, store: JobStore) -> None:
    """Remove what was saved for jobs that have ended or are gone."""
    for folder in tmp_dir.glob(f"job_*{_PROGRESS}"):
        job_id = folder.name.removesuffix(_PROGRESS)
        if _has_ended(job_id, store):
            remove_progress(tmp_dir, job_id)


def _is_running(name: str, store: JobStore) -> bool:
    rq_id = name.partition(".")[0]
    if is_hand(rq_id):
        return rq_id in Runs(store, job_id_of(rq_id)).claimed().values()
    job_id, attempt = parse_rq_job_id(rq_id)
    try:
        record = store.get(job_id)
    except JobMissing:
        return False
    return record.attempt == attempt and record.status in {
        JobStatus.RUNNING,
        JobStatus.CANCELING,
    }


def _has_ended(job_id: str, store: JobStore) -> bool:
    try:
        return store.status_of(job_id).is_final
    except JobMissing:
        return True
