"""The job record as it lies in Redis: a hash of text fields.

Status, attempt and lease are fields of their own, so that a script in Redis can compare
and set them; everything larger is JSON. Inline rows, which can be megabytes, are kept apart
from the request they came with: only the worker reads them, and only until the job succeeds.
"""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fimlora_contract.jobs import (
    RESULTS,
    EarlierAttempt,
    Job,
    JobError,
    JobKind,
    JobStatus,
    Progress,
)
from fimlora_jobs.answers import text_of


def new_job_id(now_ms: int) -> str:
    """A fresh id; ids sort by the millisecond of their creation."""
    return f"job_{now_ms:011x}{secrets.token_hex(6)}"


def created_ms(job_id: str) -> int | None:
    """The time of creation that an id of ours begins with; ``None`` for any other text."""
    match = re.fullmatch(r"job_([0-9a-f]{11})[0-9a-f]{12}", job_id)
    return int(match[1], 16) if match else None


# What is read to look after a job, and what is read to show it.
STATE_FIELDS = (
    "id", "status", "attempt", "failures", "lease_until", "updated_at", "missing_attempt",
    "deadline_at",
)  # fmt: skip
SHOWN_FIELDS = (
    *STATE_FIELDS, "kind", "version", "created_at", "started_at", "finished_at", "progress", "request",
    "resolved", "error", "result", "statistics_from", "requests", "owner", "earlier_attempts",
)  # fmt: skip


# Datasets of a request whose rows it may bring along, and the fields that these are kept in.
ROWS = {"dataset": "rows", "retain": "retain_rows"}


def request_fields(request: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, str]:
    """What a job is asked for, as fields: its inline rows apart, and their number in their place."""
    apart = dict.fromkeys(ROWS.values(), "")
    for role, field in ROWS.items():
        dataset = dict(request.get(role) or {})
        rows = dataset.pop("rows", None)
        if rows is not None:
            request = {**request, role: dataset | {"n_rows": len(rows)}}
            apart[field] = json.dumps(rows)
    return {"request": json.dumps(request), "resolved": json.dumps(resolved), **apart}


def trace_field(attempt: int) -> str:
    """The field that leads to the trace of an attempt."""
    return f"trace_{attempt}"


def as_time(milliseconds: str | None) -> datetime | None:
    """A stored time as an aware datetime."""
    return datetime.fromtimestamp(int(milliseconds) / 1000, tz=UTC) if milliseconds else None


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as stored."""

    id: str
    status: JobStatus
    attempt: int
    failures: int
    lease_until_ms: int
    updated_at_ms: int
    fields: Mapping[str, str]

    @classmethod
    def from_hash(cls, stored: Mapping[bytes | str, bytes | str]) -> "JobRecord":
        """Read what HGETALL returned, from a decoding or a bytes client."""
        fields = {text_of(key): text_of(value) for key, value in stored.items()}
        return cls(
            id=fields["id"],
            status=JobStatus(fields["status"]),
            attempt=int(fields["attempt"]),
            failures=int(fields.get("failures") or 0),
            lease_until_ms=int(fields.get("lease_until") or 0),
            updated_at_ms=int(fields["updated_at"]),
            fields=fields,
        )

    def json_field(self, name: str) -> Any:
        """A JSON field, ``None`` when it is not set."""
        text = self.fields.get(name)
        return json.loads(text) if text else None

    @property
    def kind(self) -> JobKind:
        """What the job is for; a record that does not say it is a calibration's."""
        return JobKind(self.fields.get("kind") or JobKind.CALIBRATION)

    @property
    def owner(self) -> str:
        """The tenant that it belongs to; empty for the operator, and without keys."""
        return self.fields.get("owner", "")

    @property
    def is_missing(self) -> bool:
        """Whether the current attempt was seen queued, but in no list to pop from."""
        return self.fields.get("missing_attempt") == str(self.attempt)

    @property
    def deadline_at_ms(self) -> int | None:
        """When the job fails if it has not ended; ``None`` without a deadline."""
        return int(self.fields["deadline_at"]) if self.fields.get("deadline_at") else None

    @property
    def is_stopping(self) -> bool:
        """Whether the worker of the current attempt has been told to stop."""
        return self.fields.get("stopping_attempt") == str(self.attempt)

    @property
    def earlier_attempts(self) -> list[EarlierAttempt]:
        """How attempts before the current one ended, oldest first."""
        return [EarlierAttempt(**each) for each in self.json_field("earlier_attempts") or ()]

    @property
    def storage_refusals(self) -> int:
        """How often in a row storage that works has refused this job."""
        return int(self.fields.get("storage_refusals") or 0)

    @property
    def memory_kills(self) -> tuple[str, ...]:
        """What attempts asked for that the system has ended for want of memory."""
        return tuple(self.json_field("killed_asking") or ())

    @property
    def request(self) -> dict[str, Any]:
        """The request as accepted, short forms expanded; its inline rows until it succeeds."""
        request = self.shown_request
        for role, field in ROWS.items():
            if (rows := self.json_field(field)) is not None:
                dataset = {k: v for k, v in request[role].items() if k != "n_rows"}
                request[role] = dataset | {"rows": rows}
        return request

    @property
    def shown_request(self) -> dict[str, Any]:
        """The request with the number of its inline rows in their place."""
        request: dict[str, Any] = self.json_field("request") or {}
        return request

    @property
    def request_id(self) -> str:
        """Id of the HTTP request that the job was made for; empty when it is not known."""
        return self.fields.get("request_id") or ""

    @property
    def traceparents(self) -> list[str]:
        """What leads to the traces of the request and of the attempts before the current one."""
        names = ["traceparent", *(trace_field(n) for n in range(1, self.attempt))]
        return [self.fields[name] for name in names if self.fields.get(name)]

    @property
    def traceparent(self) -> str:
        """What leads to the trace of the current attempt; empty where it has none."""
        return self.fields.get(trace_field(self.attempt)) or ""

    @property
    def is_urgent(self) -> bool:
        """Whether it goes before jobs of normal priority."""
        return bool(self.shown_request.get("priority") == "high")

    @property
    def version(self) -> int:
        """Raised by every change of a field."""
        return int(self.fields.get("version") or 0)

    @property
    def resolved(self) -> dict[str, Any]:
        """What the references resolved to."""
        resolved: dict[str, Any] = self.json_field("resolved") or {}
        return resolved

    def to_job(self, *, prefix: str = "", cached: bool = False) -> Job:
        """The record as clients see it; ``prefix`` goes before artefact links."""
        result = self.json_field("result")
        for artifact in result["artifacts"] if result else ():
            artifact["href"] = f"{prefix}/jobs/{self.id}/artifacts/{artifact['name']}"
        progress, error = self.json_field("progress"), self.json_field("error")
        request, created_at = self.shown_request, as_time(self.fields["created_at"])
        assert created_at is not None
        return Job(
            id=self.id,
            kind=self.kind,
            status=self.status,
            attempt=self.attempt,
            earlier_attempts=self.earlier_attempts,
            progress=Progress(**progress) if progress else None,
            created_at=created_at,
            started_at=as_time(self.fields.get("started_at")),
            finished_at=as_time(self.fields.get("finished_at")),
            deadline_at=as_time(self.fields.get("deadline_at")),
            request=request,
            resolved=self.resolved,
            metadata=request.get("metadata", {}),
            error=JobError(**error) if error else None,
            result=RESULTS[self.kind](**result) if result else None,
            statistics_from=self.fields.get("statistics_from") or None,
            requests=int(self.fields.get("requests") or 1),
            cached=cached,
            owner=self.owner,
        )
