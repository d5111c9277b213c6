"""What an attempt does between its start and its end, which alone differs from kind to kind.

Each kind is a function that makes the result and commits its files, and what it leaves for later
jobs once the result is on record. Heavy libraries are imported by whoever needs them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fimlora_contract.jobs import JobKind
from fimlora_jobs.catalogue import Catalogue
from fimlora_jobs.record import JobRecord
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.worker_process import WorkerProcess

Middle = Callable[[JobRecord, WorkerProcess, Reporter, Path], dict[str, Any]]


def carry_out(
    record: JobRecord, process: WorkerProcess, reporter: Reporter, folder: Path
) -> dict[str, Any]:
    """Do what a job asks for.

    Args:
        record: The job.
        process: Caches and settings of this process.
        reporter: Told about every stage; ends the attempt by raising.
        folder: An existing folder, gone after the attempt.

    Returns:
        The result as the job's record has it; its files are committed.
    """
    return MIDDLES[record.kind](record, process, reporter, folder)


def leave(record: JobRecord, process: WorkerProcess) -> None:
    """Let later requests find what a job that has succeeded has made."""
    process.store.remember_result(record.fields["request_digest"], record.id)
    if record.kind is not JobKind.CALIBRATION:
        return
    if digest := record.fields.get("statistics_digest"):
        process.store.remember_statistics(digest, record.id)
    Catalogue(process.store).file(record)


def _calibration(
    record: JobRecord, process: WorkerProcess, reporter: Reporter, folder: Path
) -> dict[str, Any]:
    from fimlora_worker.job.calibration import run

    return run(record, process, reporter, folder)


def _comparison(
    record: JobRecord, process: WorkerProcess, reporter: Reporter, folder: Path
) -> dict[str, Any]:
    from fimlora_worker.job.comparison import run

    return run(record, process, reporter, folder)


def _evaluation(
    record: JobRecord, process: WorkerProcess, reporter: Reporter, folder: Path
) -> dict[str, Any]:
    from fimlora_worker.job.evaluation import run

    return run(record, process, reporter, folder)


MIDDLES: dict[JobKind, Middle] = {
    JobKind.CALIBRATION: _calibration,
    JobKind.COMPARISON: _comparison,
    JobKind.EVALUATION: _evaluation,
}
