"""Which code and sentence a user gets for what went wrong."""

import errno
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pyarrow.parquet
import pytest
import safetensors.torch
import tokenizers
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from rq.timeouts import JobTimeoutException
from transformers import AutoConfig, AutoModel, AutoTokenizer

from fimlora.errors import InfeasibleBudget, NumericalFailure
from fimlora_contract.problems import PROBLEMS
from fimlora_jobs.datasets.columns import ColumnError
from fimlora_jobs.results.store import StorageUnavailable
from fimlora_worker import errors
from fimlora_worker.job.failures import is_broken_device, is_storage_away, job_error
from support.model_folders import make_encoder
from support.ordinary_user import as_ordinary_user, open_folder


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
        (OSError(errno.EROFS, "Read-only file system"), "storage_unavailable"),
        (OSError(errno.EIO, "Input/output error"), "storage_unavailable"),
        (StorageUnavailable("x"), "storage_unavailable"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/nowhere/at/all"), "internal"),
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


def caused(error: Exception, cause: Exception) -> Exception:
    """An error that another one has led to."""
    error.__cause__ = cause
    return error


def test_what_a_refusal_was_made_into_is_still_one():
    """A library's error that came from the system's, but not what came while one waited."""
    refusal = OSError(errno.EDQUOT, "Disk quota exceeded")

    assert is_storage_away(caused(errors.UnsupportedArchitecture("cannot load"), refusal))
    assert is_storage_away(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_storage_away(RuntimeError("broken pipe (os error 32)"))
    assert not is_storage_away(caused(errors.UnsupportedArchitecture("odd"), ValueError("x")))
    late = errors.DeadlinePassed("too late")
    late.__context__ = refusal
    assert not is_storage_away(late)


@pytest.fixture(scope="module")
def locked() -> Iterator[Path]:
    """A data folder in which the files of a model and of a dataset are not ours to read."""
    with open_folder() as root:
        model = make_encoder(root / "models" / "odd")
        (root / "rows.parquet").write_bytes(b"PAR1")
        (root / "closed").mkdir()
        for file in (*model.iterdir(), root / "rows.parquet"):
            file.chmod(0)
        yield root


def write_until_full(root: Path) -> None:
    with Path("/dev/full").open("w") as file:
        file.write("a" * 100_000)


@pytest.mark.parametrize(
    "call",
    [
        lambda root: (root / "models/odd/config.json").read_text(),
        lambda root: (root / "closed/x").mkdir(),
        lambda root: safetensors.torch.load_file(root / "models/odd/model.safetensors"),
        lambda root: safetensors.torch.save_file({}, root / "closed/x.safetensors"),
        lambda root: tokenizers.Tokenizer.from_file(str(root / "models/odd/tokenizer.json")),
        lambda root: pyarrow.parquet.read_table(root / "rows.parquet"),
        lambda root: AutoConfig.from_pretrained(root / "models/odd"),
        lambda root: AutoTokenizer.from_pretrained(root / "models/odd"),
        lambda root: AutoModel.from_pretrained(root / "models/odd"),
        write_until_full,
    ],
    ids=[
        "open", "mkdir", "safetensors-load", "safetensors-save", "tokenizers", "pyarrow",
        "config", "tokenizer", "model", "full",
    ],
)  # fmt: skip
def test_a_storage_that_refuses_is_away_whichever_library_says_so(locked, call):
    """Each in its own words, of which the user reads none that says where something lies."""
    with as_ordinary_user(), pytest.raises(Exception) as failed:  # noqa: PT011
        call(locked)

    reported = job_error(failed.value, data_dir=locked)
    assert (reported.code, reported.retryable) == ("storage_unavailable", True)
    assert str(locked) not in reported.detail
    assert "/tmp" not in reported.detail
