"""Whether an adapter was trained as planned: the plan from wherever it is kept, the engine's answer.

Calls the part of the engine that is installed with the client, which needs NumPy and no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fimlora_client.errors import InvalidFile, JobNotFinished, failure_of, problem_of
from fimlora_contract.jobs import CalibrationResult, Job, JobStatus
from fimlora_contract.model_folders import model_digest

if TYPE_CHECKING:
    from fimlora.adapter.verifying.findings import Verification


class NotVerifiable(InvalidFile):
    """There is no adapter to verify, or no plan to hold it against."""

    code = "adapter_invalid"
    next_step = "`fimlora verify --help` tells what can be verified against what."


def plan_of_job(job: Job) -> Mapping[str, Any]:
    """The plan that a job has made, as `verified` takes it.

    Raises:
        JobNotFinished: It has not ended.
        JobFailed: It failed, or it was no calibration.
        JobCanceled: It was canceled.
    """
    if not job.status.is_final:
        raise JobNotFinished(problem_of("job_not_finished", f"job {job.id} is {job.status}"))
    if job.status is not JobStatus.SUCCEEDED:
        raise failure_of(job)
    if not isinstance(job.result, CalibrationResult):
        raise NotVerifiable(f"job {job.id} is of kind {job.kind} and has made no plan")
    result = job.result.model_dump(mode="json")
    return {"rank_map": result["rank_map"], "adapter_config": result["adapter_config"]}


def verified(
    folder: Path, plan: str | Path | Mapping[str, Any], *, base_model: str | None = None
) -> "Verification":
    """What the engine finds.

    Raises:
        NotVerifiable: It cannot read the adapter or the plan.
    """
    from fimlora.adapter.verifying.folder import verify_adapter
    from fimlora.errors import FimloraError

    try:
        return verify_adapter(folder, plan, base_model=base_model, digest_of=_digest)
    except FimloraError as error:
        raise NotVerifiable(str(error)) from error


def _digest(folder: Path) -> str:
    """Digest of a base model's files, as the service takes it.

    Raises:
        NotVerifiable: A file cannot be read.
    """
    try:
        return model_digest(folder)
    except OSError as error:
        raise NotVerifiable(
            f"cannot read the base model in {folder}: {error.strerror}"
        ) from error
