"""The records of jobs that have succeeded, kept beside their results.

A record is written before its job is said to have succeeded, one note per attempt: an attempt that
was taken for dead takes back its own and nobody else's. It goes before the job's record in Redis
does, so that nothing that was deleted comes back.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from fimlora_contract.base import AnswerModel
from fimlora_contract.jobs import JobKind, JobStatus
from fimlora_contract.requests import DIGEST
from fimlora_jobs.catalogue import input_keys
from fimlora_jobs.record import JobRecord, created_ms
from fimlora_jobs.results.notes import Notes

ROOM = "records"
# What clients see of a job, and what it is found by. Rows and leases have gone by then.
KEPT_FIELDS = (
    "kind", "attempt", "failures", "version", "created_at", "started_at", "deadline_at",
    "progress", "request", "resolved", "request_digest", "statistics_digest", "statistics_from",
    "tenant", "owner", "requests", "earlier_attempts", "request_id",
)  # fmt: skip
# What reading raises of a note that is torn or somebody else's; pydantic's errors are of value.
NO_RECORD = (
    ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError,
    RecursionError,
)  # fmt: skip
_MOMENT = r"[1-9][0-9]{0,14}"  # in ms, as Redis takes it for the id of an event
OF_ITS_END = ("status", "result", "finished_at", "updated_at")


class KeptRecord(AnswerModel):
    """A note about a job.

    Attributes:
        format: Of the note.
        id: The job.
        fields: The record's fields, as they lie in Redis.
    """

    format: Literal["fimlora.job-record/1"] = "fimlora.job-record/1"
    id: str
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class KeptRecords:
    """Notes about jobs.

    Attributes:
        notes: What keeps them.
    """

    notes: Notes

    def keep(self, record: JobRecord, result: dict[str, Any], *, finished_ms: int) -> None:
        """Keep what the record will be once its current attempt has ended with a result."""
        ended = {
            "status": JobStatus.SUCCEEDED,
            "result": json.dumps(result, allow_nan=False),
            "finished_at": str(finished_ms),
            "updated_at": str(finished_ms),
        }
        self.put(record, ended)

    def put(self, record: JobRecord, ended: dict[str, str]) -> None:
        """Keep a record with these fields of its end."""
        kept = {name: record.fields[name] for name in KEPT_FIELDS if record.fields.get(name)}
        note = KeptRecord(id=record.id, fields=kept | ended)
        name = f"{record.id}.{record.attempt}"
        self.notes.put(ROOM, name, note.model_dump_json().encode())

    def withdraw(self, job_id: str, attempt: int) -> None:
        """Take back what an attempt has kept, which came too late."""
        self.notes.delete(ROOM, f"{job_id}.{attempt}")

    def forget(self, job_id: str) -> None:
        """Delete whatever is kept of a job."""
        if created_ms(job_id) is None:
            return  # no id of ours, so no name of a note
        for name in self.notes.names(ROOM, prefix=f"{job_id}."):
            self.notes.delete(ROOM, name)

    def drop(self, names: Iterable[str]) -> None:
        """Delete some notes."""
        for name in names:
            self.notes.delete(ROOM, name)

    def names(self) -> dict[str, list[str]]:
        """The notes of each job, that of the last attempt first."""
        found: dict[str, list[tuple[int, str]]] = {}
        for name in self.notes.names(ROOM):
            job_id, _, attempt = name.partition(".")
            if created_ms(job_id) is not None and attempt.isdecimal() and len(attempt) < 10:
                found.setdefault(job_id, []).append((int(attempt), name))
        return {id_: [name for _, name in sorted(notes)[::-1]] for id_, notes in found.items()}

    def read(self, job_id: str, names: Iterable[str]) -> JobRecord | None:
        """The first of some notes that is a whole record of this job's; ``None`` if none is."""
        for name in names:
            content = self.notes.read(ROOM, name)
            if content and (record := _parsed(content, job_id)):
                return record
        return None


def _parsed(content: bytes, job_id: str) -> JobRecord | None:
    """A note as the record that it is of, if clients can be shown that."""
    try:
        note = KeptRecord.model_validate_json(content)
        known: dict[bytes | str, bytes | str] = {
            name: value
            for name, value in note.fields.items()
            if name in (*KEPT_FIELDS, *OF_ITS_END)
        }
        record = JobRecord.from_hash(known | {"id": note.id})
        job = record.to_job()
        job.model_dump_json()  # text that is no text is found by no reader of it
        result = record.json_field("result")
        is_named = re.fullmatch(DIGEST, result["digest"]) and re.fullmatch(
            _MOMENT, record.fields["finished_at"]
        )
        if record.kind is JobKind.CALIBRATION:
            input_keys(record)
    except NO_RECORD:
        return None
    has_ended = record.status is JobStatus.SUCCEEDED and job.result is not None
    is_whole = note.id == job_id and has_ended and is_named and known.get("request_digest")
    return record if is_whole else None
