"""Who is at work: each worker keeps an entry fresh, and one that stops doing so is gone.

The entry is the worker's own word about itself, so that nobody has to ask RQ's registries,
which know nothing of devices and forget a dead worker only after minutes.
"""

from datetime import datetime
from typing import Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel


class Hardware(AnswerModel):
    """What a worker runs on."""

    device: Literal["cpu", "cuda"]
    device_name: str | None = Field(None, description="Of a GPU, as its driver calls it.")
    memory_bytes: int | None = Field(
        None,
        description="Of the device in total, within the container's limit; null if unknown.",
    )
    host_memory_bytes: int | None = Field(
        None, description="Of the machine in total, within the container's limit."
    )


class Worker(Hardware):
    """One living worker."""

    name: str
    object: Literal["worker"] = "worker"
    state: Literal["idle", "busy"]
    job_id: str | None = Field(None, description="The job it is busy with.")
    since: datetime = Field(description="When it took that state.")
    started_at: datetime
    last_seen: datetime


class WorkerPage(AnswerModel):
    """All living workers, by name."""

    object: Literal["list"] = "list"
    data: list[Worker]
