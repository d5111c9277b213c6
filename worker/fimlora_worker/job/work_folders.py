"""Results: written to a folder per attempt, then committed to where results are kept."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from fimlora_contract.jobs import JobStatus
from fimlora_jobs.attempts import parse_rq_job_id, rq_job_id
from fimlora_jobs.results.store import ArtifactStore, StorageUnavailable, StoredFile
from fimlora_jobs.store import JobMissing, JobStore

SHARES = (0.1, 0.3, 0.6)  # of the patience, before the second, third and last try
log = logging.getLogger(__name__)


def commit_patiently(
    artifacts: ArtifactStore,
    folder: Path,
    files: Sequence[StoredFile],
    *,
    patience_s: float,
    before_each: Callable[[], None],
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Commit a result, again if the storage is away, and answer its digest.

    Args:
        artifacts: What keeps results.
        folder: The result.
        files: Its files.
        patience_s: How long to wait in all: a measurement is worth it.
        before_each: Called before each try; ends the attempt by raising.
        sleep: Waits some seconds.

    Raises:
        StorageUnavailable: It stays away.
    """
    for wait_s in (share * patience_s for share in SHARES):
        before_each()
        try:
            return artifacts.commit(folder, files)
        except StorageUnavailable as error:
            log.warning("commit.failed wait_s=%g: %s", wait_s, error, exc_info=True)
            sleep(wait_s)
    before_each()
    return artifacts.commit(folder, files)


@contextmanager
def work_folder(tmp_dir: Path, job_id: str, attempt: int) -> Iterator[Path]:
    """A folder of an attempt's own, gone at the end whatever happens."""
    folder = tmp_dir / f"{rq_job_id(job_id, attempt)}.{uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_work_folders(tmp_dir: Path, store: JobStore) -> None:
    """Remove the folders of attempts that were killed before they could."""
    for folder in tmp_dir.glob("job_*-*.*"):
        if not _is_running(folder.name, store):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(name: str, store: JobStore) -> bool:
    job_id, attempt = parse_rq_job_id(name.partition(".")[0])
    try:
        record = store.get(job_id)
    except JobMissing:
        return False
    return record.attempt == attempt and record.status in {
        JobStatus.RUNNING,
        JobStatus.CANCELING,
    }
