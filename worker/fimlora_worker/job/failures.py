"""What a failed attempt tells the user: the only place where exceptions become codes.

Users get a code and a sentence; the traceback is the operator's and stays in the log.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator
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
from fimlora_jobs.allow_lists import NotAllowed
from fimlora_jobs.datasets.columns import ColumnError
from fimlora_jobs.datasets.rows import RowError
from fimlora_jobs.disk import describe_refusal, is_networks, refusal_in
from fimlora_jobs.hidden_paths import hide_addresses, hide_paths
from fimlora_jobs.results.store import StorageUnavailable
from fimlora_worker.errors import DeadlinePassed, WorkerError

PATH = re.compile(r"/[^'\"]+")
RETRYABLE = frozenset({
    "worker_lost", "download_failed", "disk_full", "out_of_memory_host", "storage_unavailable",
})  # fmt: skip

# What libraries say of these names the hub's or the storage's address.
FROM_OUTSIDE = frozenset({
    "model_gated", "model_not_found", "download_failed", "storage_unavailable",
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
    if code in FROM_OUTSIDE:
        sentence = hide_addresses(sentence)
    sentence = hide_paths(sentence, root=data_dir)
    return JobError(code=code, detail=sentence, retryable=code in RETRYABLE)


def code_of(error: BaseException) -> str:
    """The wire's code for an exception."""
    if is_storage_away(error):
        return "storage_unavailable"
    if isinstance(error, FimloraError | WorkerError | NotAllowed):
        return error.code
    if isinstance(error, ColumnError | RowError):
        return "dataset_schema"
    if isinstance(error, BaseTimeoutException | DeadlinePassed):
        return "timeout"
    return _memory_code(error) or _hub_code(error) or "internal"


def is_storage_away(error: BaseException) -> bool:
    """Whether an attempt failed because the storage could not be used, whoever says so.

    Libraries put errors of the system into their own, or only into their words.
    """
    if isinstance(error, BaseTimeoutException | DeadlinePassed):
        return False  # it may have come while one waited for the storage
    return any(
        isinstance(each, StorageUnavailable)
        or refusal_in(each) is not None
        or _is_there_after_all(each)
        for each in _chain(error)
    )


def describe_away(error: BaseException, *, data_dir: Path) -> str:
    """What a job waits for that failed so: as short as can be, and without the server's paths."""
    for each in _chain(error):
        if (number := refusal_in(each)) is not None:
            return describe_refusal(number)
    return job_error(error, data_dir=data_dir).detail


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


def _is_there_after_all(error: BaseException) -> bool:
    """Whether a file is there that is said not to be: safetensors says so of what is not ours."""
    if not isinstance(error, FileNotFoundError):
        return False
    found = PATH.search(str(error))
    return found is not None and os.path.lexists(found[0])


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came from; what a network refused came from there."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen and not is_networks(found):
        seen.add(id(found))
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
