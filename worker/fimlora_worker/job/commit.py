"""Commit a result to where results are kept, and wait for a storage that is away."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fimlora_contract.jobs import Stage
from fimlora_jobs.record import JobRecord
from fimlora_jobs.results.kept_records import KeptRecords
from fimlora_jobs.results.store import (
    ArtifactStore,
    StorageUnavailable,
    StoredFile,
    describe,
)
from fimlora_worker.job.failures import is_storage_away
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.signing import artifact_of, signing_key
from fimlora_worker.job.worker_process import WorkerProcess

SHARES = (0.1, 0.3, 0.6)  # of the patience, before the second, third and last try
T = TypeVar("T")
log = logging.getLogger(__name__)


def commit_adapter(folder: Path, process: WorkerProcess, reporter: Reporter) -> dict[str, Any]:
    """Commit a finished adapter and answer the result as the job's record has it."""
    texts = {
        name: (folder / f"{name}.json").read_text() for name in ("adapter_config", "rank_map")
    }
    committed = commit_files(folder, process, reporter)
    return committed | {name: json.loads(text) for name, text in texts.items()}


def commit_files(folder: Path, process: WorkerProcess, reporter: Reporter) -> dict[str, Any]:
    """Commit the files of a folder and answer what every result has: digest and artefacts.

    With a key of the operator's they are signed. The signature is listed with the artefacts, and
    kept on record: beside the files, whose digest does not depend on it.
    """
    files = describe(folder)
    digest = commit_patiently(
        process.artifacts,
        folder,
        files,
        patience_s=process.settings.storage_patience_s,
        before_each=lambda: reporter.enter(Stage.COMMITTING),
    )
    listed = [file.model_dump() for file in files]
    committed: dict[str, Any] = {"digest": digest, "artifacts": listed}
    if key := signing_key(process.settings):
        committed["signature"] = signature = key.sign(digest, files)
        listed.append(artifact_of(signature).model_dump())
    return committed


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

    def step() -> str:
        before_each()
        return artifacts.commit(folder, files)

    return patiently(step, patience_s=patience_s, sleep=sleep)


def patiently(
    step: Callable[[], T],
    *,
    patience_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Take a step, again if the storage is away.

    Args:
        step: What is done.
        patience_s: How long to wait in all.
        sleep: Waits some seconds.

    Raises:
        StorageUnavailable: It stays away.
    """
    for wait_s in (share * patience_s for share in SHARES):
        try:
            return step()
        except (StorageUnavailable, OSError) as error:
            if not is_storage_away(error):
                raise
            log.warning("commit.failed", extra={"wait_s": wait_s}, exc_info=True)
            sleep(wait_s)
    return step()


def keep_record(
    record: JobRecord, result: dict[str, Any], process: WorkerProcess, reporter: Reporter
) -> int:
    """Keep beside its result what a job's record is about to say, and answer when it ended."""
    kept = KeptRecords(process.artifacts.notes)
    finished_ms = process.store.now_ms()

    def step() -> None:
        reporter.keep_alive()  # in the stage that the files were committed in
        current = process.store.get(record.id)  # others may have joined it in the meantime
        if current.attempt == record.attempt:
            kept.keep(current, result, finished_ms=finished_ms)

    patiently(step, patience_s=process.settings.storage_patience_s)
    return finished_ms
