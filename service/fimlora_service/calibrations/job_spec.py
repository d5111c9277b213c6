"""What a request amounts to: what is to be done, what is known of it, and what became of it."""

from dataclasses import dataclass
from typing import Any, Literal

from fimlora_contract.jobs import JobKind
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.record import JobRecord
from fimlora_service.resolve.resolver import Resolved

# From earlier jobs: the result; the statistics; nothing.
Saving = Literal["cached", "replanned", "measured"]
# Or the job is open already, for an equal request; or was accepted before, under the same
# idempotency key.
Outcome = Saving | Literal["shared", "repeated"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a request.

    Attributes:
        record: The job that carries it.
        outcome: How it came to that job.
    """

    record: JobRecord
    outcome: Outcome

    @property
    def cached(self) -> bool:
        """Whether the job belongs to an earlier, equal request."""
        return self.outcome == "cached"


@dataclass(frozen=True, slots=True)
class Reusable:
    """Earlier jobs that save work.

    Attributes:
        result: One that an equal request has made.
        measured: One that has measured the same.
    """

    result: JobRecord | None = None
    measured: JobRecord | None = None

    @property
    def outcome(self) -> Saving:
        """What becomes of a request that finds this, unless it shares an open job."""
        if self.result:
            return "cached"
        return "replanned" if self.measured else "measured"


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a job is to do.

    Attributes:
        request: The request as accepted.
        resolved: What its references resolved to.
        digest: Equal for requests that must give equal results.
        statistics_digest: Equal for requests that must measure equal statistics.
        owner: The tenant that the job is to belong to; empty for the operator.
        tenant: Who may find the result by its inputs; empty for everybody.
        is_retry: Whether it repeats a job: no other result answers it, and it is not counted.
        statistics_from: The job whose statistics a retry uses, as the job before did.
        kind: What the job is for.
        runs_from: The evaluation that a retry repeats, whose finished runs it takes over.
    """

    request: dict[str, Any]
    resolved: dict[str, Any]
    digest: str
    statistics_digest: str
    owner: str = ""
    tenant: str = ""
    is_retry: bool = False
    statistics_from: str = ""
    kind: JobKind = JobKind.CALIBRATION
    runs_from: str = ""

    @classmethod
    def of(
        cls,
        request: CalibrationRequest,
        resolved: Resolved,
        kind: JobKind = JobKind.CALIBRATION,
        *,
        owner: str = "",
    ) -> "JobSpec":
        """What a request asks for; how it came, and who is told, is no part of it."""
        return cls(
            request.model_dump(mode="json", exclude={"validate_only", "webhook"}),
            resolved.references,
            digest=resolved.digest,
            statistics_digest=resolved.statistics_digest,
            owner=owner,
            tenant=resolved.tenant,
            kind=kind,
        )

    @classmethod
    def again(cls, record: JobRecord) -> "JobSpec":
        """The same as an earlier job did, on the same content."""
        return cls(
            record.request,
            record.resolved,
            digest=record.fields["request_digest"],
            statistics_digest=record.fields.get("statistics_digest", ""),
            owner=record.owner,
            tenant=record.fields.get("tenant", ""),
            is_retry=True,
            statistics_from=record.fields.get("statistics_from", ""),
            kind=record.kind,
            runs_from=record.id if record.kind is JobKind.EVALUATION else "",
        )

    @property
    def alone(self) -> bool:
        """Whether it shares no job with equal requests.

        It asks to be done in any case, or to be given up at a time that others did not ask for.
        """
        return self.is_forced or bool(self.request.get("deadline_s"))

    @property
    def is_forced(self) -> bool:
        """Whether it is to be done whatever earlier jobs have found."""
        return bool(self.request.get("force"))

    @property
    def is_urgent(self) -> bool:
        """Whether it goes before others."""
        return self.request.get("priority") == "high"
