"""Which jobs somebody wants to see, by what their records say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fimlora_contract.jobs import JobKind, JobStatus
from fimlora_contract.references import expand_model
from fimlora_jobs.record import STATE_FIELDS, JobRecord


@dataclass(frozen=True, slots=True)
class JobFilter:
    """All that is given must hold.

    Attributes:
        kind: Of this kind.
        statuses: In one of these; any if empty.
        labels: With each of these values in its metadata.
        model: Of this base model, in the short form of a request; without a revision, of any.
    """

    kind: JobKind | None = None
    statuses: frozenset[JobStatus] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every job is wanted."""
        return not (self.kind or self.statuses or self.labels or self.model)

    @property
    def fields(self) -> tuple[str, ...]:
        """What must be read of a record to tell."""
        asks_request = ("request",) if self.labels or self.model else ()
        return (*STATE_FIELDS, "kind", "owner", *asks_request)

    def matches(self, record: JobRecord) -> bool:
        """Whether a job is one of those that are wanted."""
        if self.kind not in (None, record.kind):
            return False
        if self.statuses and record.status not in self.statuses:
            return False
        if not (self.labels or self.model):
            return True
        request = record.shown_request
        metadata = request.get("metadata") or {}
        if any(metadata.get(name) != value for name, value in self.labels.items()):
            return False
        return self.model is None or _is_named(request.get("base_model") or {}, self.model)


def _is_named(reference: Mapping[str, Any], model: str) -> bool:
    wanted: dict[str, Any] = expand_model(model)
    return all(reference.get(name) == value for name, value in wanted.items())
