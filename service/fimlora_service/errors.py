"""Every refusal the service makes on purpose; one handler turns any into a problem document.

Status, title and next step of a code are in the contract's table.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fimlora_contract.problems import PROBLEMS, step_for


class ServiceError(Exception):
    """Base of all refusals; the message names what was given and what is allowed."""

    code: ClassVar[str] = "internal"
    retry_after_s: ClassVar[int | None] = None

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.errors = list(errors)
        self.next_step = next_step or self._usual_step()
        self.headers = dict(headers or {})
        if self.retry_after_s is not None:
            self.headers.setdefault("Retry-After", str(self.retry_after_s))

    @property
    def status_code(self) -> int:
        """HTTP status of the code."""
        return PROBLEMS[self.code].status

    def _usual_step(self) -> str:
        return PROBLEMS[self.code].next_step


class MalformedRequest(ServiceError):
    code = "malformed_request"


class WebhookNotAllowed(ServiceError):
    code = "webhook_not_allowed"


class Unauthenticated(ServiceError):
    code = "unauthenticated"


class Forbidden(ServiceError):
    code = "forbidden"


class HostNotAllowed(ServiceError):
    code = "host_not_allowed"


class OriginNotAllowed(ServiceError):
    code = "origin_not_allowed"


class ModelNotAllowed(ServiceError):
    code = "model_not_allowed"


class SourceNotAllowed(ServiceError):
    code = "source_not_allowed"


class RouteNotFound(ServiceError):
    code = "not_found"


class JobNotFound(ServiceError):
    code = "job_not_found"


class JobGone(ServiceError):
    code = "job_gone"


class ArtifactNotFound(ServiceError):
    code = "artifact_not_found"


class ResultExpired(ServiceError):
    code = "result_expired"


class NoPattern(ServiceError):
    code = "no_pattern"


class DatasetNotFound(ServiceError):
    code = "dataset_not_found"


class AdapterNotFound(ServiceError):
    code = "adapter_not_found"


class AdapterInvalid(ServiceError):
    code = "adapter_invalid"


class AdapterInUse(ServiceError):
    code = "adapter_in_use"


class KeyNotFound(ServiceError):
    code = "key_not_found"


class RequestTimeout(ServiceError):
    code = "request_timeout"


class MethodNotAllowed(ServiceError):
    code = "method_not_allowed"


class NotAcceptable(ServiceError):
    code = "not_acceptable"


class JobNotFinished(ServiceError):
    code = "job_not_finished"
    retry_after_s = 2


class JobFailed(ServiceError):
    code = "job_failed"


class JobCanceled(ServiceError):
    code = "canceled"


class JobAlreadyFinished(ServiceError):
    code = "job_already_finished"


class DatasetInUse(ServiceError):
    code = "dataset_in_use"


class IdempotencyInFlight(ServiceError):
    code = "idempotency_in_flight"
    retry_after_s = 1


class IdempotencyMismatch(ServiceError):
    code = "idempotency_mismatch"


class PayloadTooLarge(ServiceError):
    code = "payload_too_large"


class UnsupportedMediaType(ServiceError):
    code = "unsupported_media_type"


class ValidationFailed(ServiceError):
    code = "validation_failed"

    def _usual_step(self) -> str:
        return step_for(self.errors) or super()._usual_step()


class UnsupportedArchitecture(ServiceError):
    code = "unsupported_architecture"


class BudgetInfeasible(ServiceError):
    code = "budget_infeasible"


class DatasetSchema(ServiceError):
    code = "dataset_schema"


class DatasetEmpty(ServiceError):
    code = "dataset_empty"


class UnsafeWeights(ServiceError):
    code = "unsafe_weights"


class ModelNotFound(ServiceError):
    code = "model_not_found"


class ModelGated(ServiceError):
    code = "model_gated"


class DatasetUnreachable(ServiceError):
    code = "dataset_unreachable"


class RateLimited(ServiceError):
    code = "rate_limited"
    retry_after_s = 1


class QuotaExceeded(ServiceError):
    code = "quota_exceeded"
    retry_after_s: ClassVar[int | None] = 60


class QuotaUsedUp(QuotaExceeded):
    """One that does not pass by waiting."""

    retry_after_s = None


class QueueFull(ServiceError):
    code = "queue_full"
    retry_after_s = 30


class Overloaded(ServiceError):
    code = "overloaded"
    retry_after_s = 1


class HubUnreachable(ServiceError):
    code = "hub_unreachable"
    retry_after_s = 10


class RedisUnavailable(ServiceError):
    code = "redis_unavailable"
    retry_after_s = 2


class StorageUnavailable(ServiceError):
    code = "storage_unavailable"
    retry_after_s = 5


class DiskFull(ServiceError):
    code = "disk_full"


class InternalError(ServiceError):
    code = "internal"
