"""Entries of a job's history, as they are written in the step that makes them true."""

import json
from typing import Any, Literal

from fimlora_contract.jobs import AttemptEnd, JobError, JobStatus, Progress


def event_text(
    type_: Literal["status", "progress"],
    job_id: str,
    status: JobStatus,
    attempt: int,
    *,
    progress: Progress | None = None,
    error: JobError | None = None,
    reason: AttemptEnd | None = None,
) -> str:
    """An entry as JSON, without the id that Redis gives it."""
    body: dict[str, Any] = {
        "type": type_, "job_id": job_id, "status": status, "attempt": attempt,
    }  # fmt: skip
    if progress:
        body["progress"] = progress.model_dump(mode="json")
    if error:
        body["error"] = error.model_dump(mode="json")
    if reason:
        body["reason"] = reason
    return json.dumps(body)
