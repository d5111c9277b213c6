"""What a failed attempt tells the user: the only place where exceptions become codes.

Users get a code and a sentence; the traceback is the operator's and stays in the log.
"""

import errno
import sys
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from rq.timeouts import BaseTimeoutException

from fimlora.errors import FimloraError
from fimlora_contract.jobs import JobError
from fimlora_jobs.datasets.columns import ColumnError
from fimlora_jobs.datasets.rows import RowError
from fimlora_jobs.disk import refusal_in
from fimlora_jobs.hidden_paths import hide_paths
from fimlora_jobs.results.store import StorageUnavailable
from fimlora_worker.errors import DeadlinePassed, WorkerError

RETRYABLE = frozenset({
    "worker_lost", "download_failed", "disk_full", "out_of_memory_host", "storage_unavailable",
})  # fmt: skip


def job_error(error: BaseException, *, data_dir: Path | None = None) -> JobError:
    """The job's error for what an attempt raised, without the server's paths.

    Args:
        error: The exception.
        data_dir: The data folder; its paths become registered names.
    """
    code = code_of(error)
    sentence = str(error) or type(error).__name__
    if code == "internal":
        sentence = f"the worker failed with {type(error).__name__}; its log has the details"
    sentence = hide_paths(sentence, root=data_dir)
    return JobError(code=code, detail=sentence, retryable=code in RETRYABLE)


def code_of(error: BaseException) -> str:
    """The wire's code for an exception."""
    if isinstance(error, FimloraError | WorkerError):
        return error.code
    if isinstance(error, ColumnError | RowError):
        return "dataset_schema"
    if isinstance(error, StorageUnavailable):
        return "storage_unavailable"
    if isinstance(error, BaseTimeoutException | DeadlinePassed):
        return "timeout"
    return _memory_code(error) or _hub_code(error) or _system_code(error)


def is_broken_device(error: BaseException) -> bool:
    """Whether the process cannot be trusted any more after this error.

    A CUDA context stays broken after an error, and memory stays fragmented after it ran out.
    """
    torch = sys.modules.get("torch")
    accelerator_error = getattr(torch, "AcceleratorError", None) if torch else None
    broken = accelerator_error is not None and isinstance(error, accelerator_error)
    return broken or _memory_code(error) is not None or "CUDA error" in str(error)


def _memory_code(error: BaseException) -> str | None:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return "out_of_memory_gpu"
    # Torch's CPU allocator raises a plain RuntimeError.
    refused = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    # No memory for another process, say, or for mapping a file.
    refused |= isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or refused:
        return "out_of_memory_host"
    return None


def _hub_code(error: BaseException) -> str | None:
    if isinstance(error, GatedRepoError):
        return "model_gated"
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return "model_not_found"
    if isinstance(
        error, HfHubHTTPError | LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError
    ):
        return "download_failed"
    return None


def _system_code(error: BaseException) -> str:
    return "internal" if refusal_in(error) is None else "storage_unavailable"
