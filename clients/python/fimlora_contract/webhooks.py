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


class WebhookTry(AnswerModel):
    """One try to tell an address of a job's end; of the address itself only the origin."""

    id: str = Field(description="What the receiver gets as `webhook-id`: one per address.")
    origin: str = Field(description="Scheme, host and port of the address.")
    at: datetime
    attempt: int = Field(description="Number of the try for this address, from 1.")
    outcome: Literal["delivered", "retry", "refused", "dropped", "given_up"] = Field(
        description="`refused`: the receiver answered 410. `dropped`: the operator does not "
        "allow the host any more. `given_up`: the last of all tries failed."
    )
    status: int | None = Field(None, description="HTTP status of the answer, if there was one.")
    reason: str | None = Field(None, description="Why there was no answer.")
    duration_s: float
    next_try_at: datetime | None = Field(None, description="Set only after `retry`.")


class WebhookTries(AnswerModel):
    """What has become of a job's webhooks, the newest try first."""

    object: Literal["list"] = "list"
    data: list[WebhookTry] = Field(description="The newest hundred at most.")
    waiting: int = Field(
        description="Addresses still to be told: of the end that is to come, or again."
    )


class WebhookEvent(AnswerModel):
    """The body of a webhook, as Standard Webhooks has it."""

    type: Literal["job.succeeded", "job.failed", "job.canceled"]
    timestamp: datetime
    data: WebhookJob
