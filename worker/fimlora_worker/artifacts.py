"""Results on disk: written to a folder per attempt, then renamed once to their digest.

A folder under its digest is complete or not there at all, and two attempts that made the
same result make the same folder.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from fimlora_contract.digests import digest_file, digest_of
from fimlora_contract.jobs import JobStatus
from fimlora_contract.store import JobMissing, JobStore
from fimlora_contract.tasks import parse_rq_job_id, rq_job_id

MEDIA_TYPES = {".json": "application/json", ".svg": "image/svg+xml"}
BINARY = "application/octet-stream"
ALREADY_THERE = frozenset({errno.ENOTEMPTY, errno.EEXIST})


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


def describe(folder: Path) -> list[dict[str, Any]]:
    """Name, digest, size and media type of every file, in order of name."""
    return [
        {
            "name": path.name,
            "digest": digest_file(path),
            "size": path.stat().st_size,
            "media_type": MEDIA_TYPES.get(path.suffix, BINARY),
        }
        for path in sorted(folder.iterdir())
    ]


def commit(folder: Path, artifacts_dir: Path, described: list[dict[str, Any]]) -> str:
    """Move a finished folder to its content address.

    Args:
        folder: What was written, on the file system of ``artifacts_dir``.
        artifacts_dir: Where content addresses live.
        described: What `describe` says about the folder.

    Returns:
        The digest; the folder may have been there already.
    """
    digest = digest_of({file["name"]: file["digest"] for file in described})
    for file in described:
        _sync(folder / file["name"])
    _sync(folder)
    target = artifacts_dir / digest.replace(":", "-")
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in ALREADY_THERE:
            raise
    _sync(artifacts_dir)
    return digest


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
