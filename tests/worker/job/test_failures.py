"""Which code and sentence a user gets for what went wrong."""

import errno

import httpx2
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from rq.timeouts import JobTimeoutException

from fimlora.errors import InfeasibleBudget, NumericalFailure
from fimlora_contract.problems import PROBLEMS
from fimlora_jobs.datasets.columns import ColumnError
from fimlora_worker import errors
from fimlora_worker.job.failures import is_broken_device, job_error


def hub_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = httpx2.Request("GET", "http://hub/api/models/org/m")
    return kind("from the hub", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InfeasibleBudget("x"), "budget_infeasible"),
        (NumericalFailure("x"), "numerical_failure"),
        (ColumnError("x"), "dataset_schema"),
        (errors.DeadlinePassed("x"), "timeout"),
        (JobTimeoutException("x"), "timeout"),
        (torch.OutOfMemoryError("x"), "out_of_memory_gpu"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), "out_of_memory_host"),
        (MemoryError(), "out_of_memory_host"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory_host"),
        (OSError(errno.ENOSPC, "No space left on device"), "storage_unavailable"),
        (hub_error(GatedRepoError, 403), "model_gated"),
        (hub_error(RepositoryNotFoundError, 404), "model_not_found"),
        (hub_error(HfHubHTTPError, 502), "download_failed"),
        (ConnectionResetError("x"), "download_failed"),
        (ZeroDivisionError("x"), "internal"),
        (OSError(errno.EACCES, "Permission denied"), "storage_unavailable"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_every_failure_has_a_code_of_the_wire(error, code):
    """Each exception maps to one known code, and never to an empty sentence."""
    reported = job_error(error)

    assert reported.code == code
    assert code in PROBLEMS
    assert reported.detail


def test_every_error_of_the_worker_has_a_code_of_the_wire():
    """A new error class cannot be forgotten in the table of problems."""
    codes = {e.code for e in errors.WorkerError.__subclasses__()}

    assert codes
    assert codes <= set(PROBLEMS)


def test_what_was_not_foreseen_is_not_told_to_the_user():
    """Paths and secrets in a library's message stay in the operator's log."""
    detail = job_error(RuntimeError("token hf_secret refused in /srv/models")).detail

    assert "hf_secret" not in detail
    assert "RuntimeError" in detail


def test_only_memory_and_device_errors_make_a_process_untrustworthy():
    """A bad dataset is no reason to throw loaded models away."""
    assert is_broken_device(torch.OutOfMemoryError("x"))
    assert is_broken_device(RuntimeError("CUDA error: an illegal memory access"))
    assert not is_broken_device(errors.DatasetSchema("x"))
