"""What can go wrong for a caller: one exception class per problem code, and a few of our own.

Every exception carries ``status``, ``code``, ``request_id`` and ``problem``; those that did
not come from an answer of the service hold ``None`` where there is nothing to tell.
"""

from collections.abc import Mapping
from typing import Any

from fimlora_contract.jobs import Job
from fimlora_contract.problems import PROBLEMS, Problem


class ClientError(Exception):
    """Base class of everything this client raises.

    Attributes:
        status: HTTP status of the answer, if there was one.
        code: Stable name of what happened.
        request_id: What to quote to the operator, if there was an answer.
        problem: The problem document, if there was one.
        next_step: What to do about it.
    """

    code: str = "client_error"
    next_step: str = ""
    status: int | None = None
    request_id: str | None = None
    problem: Problem | None = None

    def __init__(self, *args: object, next_step: str = "") -> None:
        super().__init__(*args)
        if next_step:
            self.next_step = next_step


class ConnectionFailed(ClientError, ConnectionError):
    """The service could not be reached, or the connection broke."""

    code = "connection_failed"
    next_step = "Start it with `fimlora up`, or set FIMLORA_URL to where it runs."


class WaitTimeout(ClientError, TimeoutError):
    """The deadline of a wait passed; the job itself goes on."""

    code = "wait_timeout"
    next_step = "Wait again with a longer timeout, or cancel the job."


class DigestMismatch(ClientError, ValueError):
    """A downloaded file is not what the service said it is."""

    code = "digest_mismatch"
    next_step = (
        "Download it again; if that fails too, something between here and there alters it."
    )


class SignatureInvalid(ClientError, ValueError):
    """A result is not signed, or is not what was signed."""

    code = "signature_invalid"
    next_step = "Do not use it; ask whoever runs the service."


class MissingExtra(ClientError, ImportError):
    """A package of an extra is needed and not installed."""

    code = "missing_extra"
    next_step = "Install it beside fimlora, and try again."


class InvalidFile(ClientError, ValueError):
    """A local file cannot be sent or used as it is."""

    code = "invalid_file"
    next_step = "Give another file or folder, or mend this one."


class InvalidSettings(ClientError, ValueError):
    """The environment cannot be used as it is."""

    code = "invalid_settings"
    next_step = "`fimlora config` shows what is set, and docs/configuration.md what can be."


class ApiError(ClientError):
    """The service answered with a problem; subclasses say which."""

    code = "api_error"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, next_step=problem.next_step)
        self.problem = problem
        self.status = problem.status
        self.code = problem.code
        self.request_id = problem.request_id

    def __str__(self) -> str:
        problem = self.args[0]
        return str(problem.detail or problem.title)


class MalformedRequest(ApiError, ValueError):
    code = "malformed_request"


class WebhookNotAllowed(ApiError, PermissionError):
    code = "webhook_not_allowed"


class Unauthenticated(ApiError, PermissionError):
    code = "unauthenticated"


class Forbidden(ApiError, PermissionError):
    code = "forbidden"


class HostNotAllowed(ApiError, PermissionError):
    code = "host_not_allowed"


class OriginNotAllowed(ApiError, PermissionError):
    code = "origin_not_allowed"


class ModelNotAllowed(ApiError, PermissionError):
    code = "model_not_allowed"


class SourceNotAllowed(ApiError, PermissionError):
    code = "source_not_allowed"


class NotFound(ApiError, LookupError):
    code = "not_found"


class JobNotFound(ApiError, LookupError):
    code = "job_not_found"


class JobGone(ApiError, LookupError):
    code = "job_gone"


class ResultExpired(ApiError, LookupError):
    code = "result_expired"


class ArtifactNotFound(ApiError, LookupError):
    code = "artifact_not_found"


class NoPattern(ApiError, LookupError):
    code = "no_pattern"


class DatasetNotFound(ApiError, LookupError):
    code = "dataset_not_found"


class AdapterNotFound(ApiError, LookupError):
    code = "adapter_not_found"


class AdapterInvalid(ApiError, ValueError):
    code = "adapter_invalid"


class KeyNotFound(ApiError, LookupError):
    code = "key_not_found"


class RequestTimeout(ApiError):
    code = "request_timeout"


class MethodNotAllowed(ApiError):
    code = "method_not_allowed"


class NotAcceptable(ApiError):
    code = "not_acceptable"


class JobNotFinished(ApiError):
    code = "job_not_finished"


class JobFailed(ApiError, RuntimeError):
    """The job ended without a result; raised by waiting and by asking for the result.

    Attributes:
        job: The failed job when a wait found it; its ``error`` says why.
    """

    code = "job_failed"

    def __init__(self, problem: Problem, job: Job | None = None) -> None:
        super().__init__(problem)
        self.args = (problem, job)
        self.job = job


class JobAlreadyFinished(ApiError):
    code = "job_already_finished"


class DatasetInUse(ApiError):
    code = "dataset_in_use"

    @property
    def job_ids(self) -> list[str]:
        """The open jobs that need it, or the first hundred of them."""
        return [str(e["job_id"]) for e in self.args[0].errors if "job_id" in e]

    def __str__(self) -> str:
        named = ", ".join(self.job_ids)
        return f"{super().__str__()}: {named}" if named else super().__str__()


class AdapterInUse(DatasetInUse):
    code = "adapter_in_use"


class IdempotencyInFlight(ApiError):
    code = "idempotency_in_flight"


class PayloadTooLarge(ApiError, ValueError):
    code = "payload_too_large"


class UnsupportedMediaType(ApiError, ValueError):
    code = "unsupported_media_type"


class ValidationFailed(ApiError, ValueError):
    code = "validation_failed"

    def __str__(self) -> str:
        lines = [_field_line(error) for error in self.args[0].errors]
        return "; ".join(lines) or super().__str__()


class IdempotencyMismatch(ApiError, ValueError):
    code = "idempotency_mismatch"


class UnsupportedArchitecture(ApiError, ValueError):
    code = "unsupported_architecture"


class BudgetInfeasible(ApiError, ValueError):
    code = "budget_infeasible"


class DatasetSchema(ApiError, ValueError):
    code = "dataset_schema"


class DatasetEmpty(ApiError, ValueError):
    code = "dataset_empty"


class UnsafeWeights(ApiError, ValueError):
    code = "unsafe_weights"


class ModelNotFound(ApiError, LookupError):
    code = "model_not_found"


class ModelGated(ApiError, PermissionError):
    code = "model_gated"


class DatasetUnreachable(ApiError):
    code = "dataset_unreachable"


class RateLimited(ApiError):
    code = "rate_limited"


class QuotaExceeded(ApiError):
    code = "quota_exceeded"


class Overloaded(ApiError):
    code = "overloaded"


class QueueFull(ApiError):
    code = "queue_full"


class HubUnreachable(ApiError):
    code = "hub_unreachable"


class StorageUnavailable(ApiError):
    code = "storage_unavailable"


class RedisUnavailable(ApiError):
    code = "redis_unavailable"


class DiskFull(ApiError):
    code = "disk_full"


class Internal(ApiError):
    code = "internal"


class WorkerLost(JobFailed):
    code = "worker_lost"


class OutOfMemoryGpu(JobFailed):
    code = "out_of_memory_gpu"


class OutOfMemoryHost(JobFailed):
    code = "out_of_memory_host"


class JobTimedOut(JobFailed):
    code = "timeout"


class JobCanceled(ApiError, RuntimeError):
    """The job was canceled before it had a result.

    Attributes:
        job: The canceled job when a wait found it.
    """

    code = "canceled"

    def __init__(self, problem: Problem, job: Job | None = None) -> None:
        super().__init__(problem)
        self.args = (problem, job)
        self.job = job


class DownloadFailed(JobFailed):
    code = "download_failed"


class NumericalFailure(JobFailed):
    code = "numerical_failure"


def _classes(base: type[ApiError]) -> list[type[ApiError]]:
    return [base, *(found for child in base.__subclasses__() for found in _classes(child))]


ERRORS: dict[str, type[ApiError]] = {kind.code: kind for kind in _classes(ApiError)[1:]}


def error_of(problem: Problem) -> ApiError:
    """The exception for a problem document; a code from a newer service is an `ApiError`."""
    return ERRORS.get(problem.code, ApiError)(problem)


def problem_of(
    code: str, detail: str, *, errors: list[dict[str, str]] | None = None
) -> Problem:
    """A problem document for a known code, made on this side of the wire."""
    kind = PROBLEMS.get(code) or PROBLEMS["internal"]
    return Problem(
        type=f"/problems/{code}",
        title=kind.title,
        status=kind.status,
        code=code,
        detail=detail,
        next_step=kind.next_step,
        instance=None,
        errors=[dict(e) for e in errors or ()],
    )


def failure_of(job: Job) -> JobFailed | JobCanceled:
    """The exception for a job that ended without a result."""
    if job.error is None:
        problem = problem_of("canceled", f"job {job.id} was canceled")
        return JobCanceled(problem, job)
    kind = ERRORS.get(job.error.code, JobFailed)
    problem = problem_of(job.error.code, f"job {job.id} failed: {job.error.detail}")
    return (kind if issubclass(kind, JobFailed) else JobFailed)(problem, job)


def _field_line(error: Mapping[str, Any]) -> str:
    """``budget.rank: must be ...``, without what only programs care about."""
    field = str(error.get("field", "")).removeprefix("body").removeprefix(".")
    field = field.removeprefix("path.").removeprefix("query.")
    message = str(error.get("message", "")).removeprefix("Value error, ")
    return f"{field}: {message}" if field else message
