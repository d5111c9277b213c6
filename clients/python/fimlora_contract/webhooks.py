"""Webhooks: which address is to be told of a job's end, what it is told, and the outbox.

An entry of the outbox is written by the script that ends the job, in the same step. Whoever
delivers takes an entry for a while instead of removing it, so that one whose process dies is
delivered by the next.
"""

import re
from datetime import datetime
from typing import Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel
from fimlora_contract.jobs import JobError, JobKind, JobStatus
from fimlora_contract.requests import WEBHOOK_URL

DEFAULT_PORTS = {"https": 443, "http": 80}


def origin_of(url: str) -> str | None:
    """Scheme, host and port of an address; ``None`` if it is none that may be called."""
    match = re.fullmatch(WEBHOOK_URL, url)
    if match is None:
        return None
    scheme, host, _, port, _ = match.groups()
    number = int(port[1:]) if port else DEFAULT_PORTS[scheme]
    return f"{scheme}://{host.lower()}:{number}" if 0 < number < 65_536 else None


class WebhookJob(AnswerModel):
    """What a webhook tells of a job; GET /jobs/{id} has the rest."""

    id: str
    object: Literal["job"] = "job"
    kind: JobKind = JobKind.CALIBRATION
    status: JobStatus
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    metadata: dict[str, str]
    error: JobError | None
    digest: str | None = Field(None, description="Content address of the result.")


class WebhookEvent(AnswerModel):
    """The body of a webhook, as Standard Webhooks has it."""

    type: Literal["job.succeeded", "job.failed", "job.canceled"]
    timestamp: datetime
    data: WebhookJob
