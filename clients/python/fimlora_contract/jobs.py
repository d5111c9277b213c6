"""Jobs as clients see them."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel


class JobStatus(StrEnum):
    """Where a job stands; the last three are final and never change again."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self in FINAL_STATUSES


FINAL_STATUSES = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED})


class Stage(StrEnum):
    """What a running job is doing."""

    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    CALIBRATING = "calibrating"
    ALLOCATING = "allocating"
    WRITING = "writing"
    COMMITTING = "committing"


class Progress(AnswerModel):
    """How far a running job is; ``seconds_left`` is null until a batch has been timed."""

    stage: Stage
    batch: int = 0
    n_batches: int = 0
    seconds_left: float | None = None
    resumed_from: int | None = Field(
        default=None,
        description="Batches that an earlier attempt had done and saved, if it had.",
    )


class JobError(AnswerModel):
    """Why a job failed, with the same codes as problem documents."""

    code: str
    detail: str
    retryable: bool = False


class Artifact(AnswerModel):
    """One file of the result; its digest is also its ``ETag``."""

    name: str
    digest: str
    size: int
    media_type: str
    href: str = ""


class ArtifactPage(AnswerModel):
    """All files of a result."""

    object: Literal["list"] = "list"
    data: list[Artifact]


class RankMapModule(AnswerModel):
    """One target module of a rank map."""

    name: str
    d_in: int
    d_out: int
    fan_in_fan_out: bool = False
    layer: int | None
    kind: str
    score: float
    rank: int
    alpha: int
    parameters: int


class WrittenAdapter(AnswerModel):
    """What the adapter of a plan holds, as written."""

    layout: str
    width: int | None = Field(
        None, description="The common rank that layout C pads to; null in layout B."
    )
    trainable_parameters: int = Field(
        description="Of all LoRA matrices, with their padding; without a trained head."
    )


class RankMap(AnswerModel):
    """The plan as data: the same object that ``rank_map.json`` holds."""

    format: str
    budget: dict[str, Any]
    rule: str
    r_min: int
    r_max: int
    scale: int
    spent: dict[str, int]
    controls: dict[str, dict[str, Any]]
    provenance: dict[str, Any]
    adapter: WrittenAdapter | None = Field(
        None, description="Null in rank maps of before it was recorded."
    )
    modules: list[RankMapModule]


class Execution(AnswerModel):
    """How a measurement was carried out; it changes no result and is in no artefact."""

    executor: Literal["resident", "streamed"]
    micro_batch_size: int = Field(
        description="Examples that went through the model at once, after all halvings."
    )
    peak_memory_bytes: int | None = Field(
        None,
        description="The most memory in use: on a GPU what torch had allocated, on a CPU the "
        "worker process's largest resident size so far. Null where nobody counts.",
    )


class CalibrationResult(AnswerModel):
    """What a succeeded job delivers; polling alone is enough to use it."""

    digest: str = Field(description="Content address of the artefact folder.")
    adapter_config: dict[str, Any]
    rank_map: RankMap
    artifacts: list[Artifact]
    execution: Execution | None = Field(
        None, description="Null when the statistics of another job were used."
    )


class Plan(AnswerModel):
    """Another plan from a job's statistics; nothing was queued and nothing is stored."""

    object: Literal["plan"] = "plan"
    job_id: str = Field(description="The job whose statistics were used.")
    digest: str = Field(description="Content address the plan would have as a result.")
    adapter_config: dict[str, Any]
    rank_map: RankMap


class RankPattern(AnswerModel):
    """A result as CI and clusters fetch it; equal digests are equal answers for ever."""

    object: Literal["rank_pattern"] = "rank_pattern"
    digest: str = Field(description="Content address of the result.")
    adapter_config: dict[str, Any]
    rank_map: RankMap


class PinEntry(AnswerModel):
    """A result that a pin stands for, or stood for."""

    digest: str
    pinned_at: datetime


class Pin(AnswerModel):
    """A name and tag that stand for a result; the newest entry of the history counts."""

    object: Literal["pin"] = "pin"
    name: str
    tag: str
    digest: str
    history: list[PinEntry] = Field(description="Newest first.")


class RankChange(AnswerModel):
    """One target module in two results; a rank is 0 where it is not targeted."""

    name: str
    rank_a: int
    rank_b: int
    change: int = Field(description="`rank_b - rank_a`.")


class RankDrift(AnswerModel):
    """How far the ranks of two results lie apart."""

    n_modules: int
    n_changed: int
    ranks_a: int
    ranks_b: int
    parameters_a: int
    parameters_b: int
    moved: int = Field(description="Sum of all changes, without their signs.")
    largest_change: int
    share_moved: float = Field(
        description="`moved` over the ranks of both results: 0 when equal, 1 when disjoint."
    )


class RankDiff(AnswerModel):
    """Rank drift between the results of two jobs, per module and in sum."""

    object: Literal["rank_diff"] = "rank_diff"
    job_a: str
    job_b: str
    drift: RankDrift
    modules: list[RankChange] = Field(description="Those that differ, largest change first.")


class Job(AnswerModel):
    """One accepted calibration request."""

    id: str
    object: Literal["job"] = "job"
    status: JobStatus
    attempt: int = Field(description="Number of the current or last try, from 1.")
    progress: Progress | None = Field(None, description="Null while queued for the first time.")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_at: datetime | None = Field(
        None, description="When it fails with code timeout if it has not ended by then."
    )
    request: dict[str, Any]
    resolved: dict[str, Any] = Field(description="What the references resolved to.")
    metadata: dict[str, str] = {}
    error: JobError | None = Field(None, description="Set only when failed.")
    result: CalibrationResult | None = Field(None, description="Set only when succeeded.")
    statistics_from: str | None = Field(
        None, description="The job whose statistics were used instead of measuring again."
    )
    cached: bool = Field(False, description="This request had already succeeded before.")
    requests: int = Field(
        1, description="How many equal requests share the job; a cancel withdraws one of them."
    )


class JobPage(AnswerModel):
    """Newest jobs first; pass ``next_cursor`` as ``cursor`` for the following page."""

    object: Literal["list"] = "list"
    data: list[Job]
    next_cursor: str | None = None


class JobEvent(AnswerModel):
    """One entry of a job's history; ``id`` is what ``Last-Event-ID`` takes."""

    id: str
    type: Literal["status", "progress"]
    job_id: str
    status: JobStatus
    attempt: int
    progress: Progress | None = None
    error: JobError | None = None


class JobEventPage(AnswerModel):
    """Oldest events first; pass ``next_cursor`` as ``after`` for the following page."""

    object: Literal["list"] = "list"
    data: list[JobEvent]
    next_cursor: str | None = None


class Dataset(AnswerModel):
    """An uploaded or registered dataset; the id of an upload is its content."""

    id: str
    object: Literal["dataset"] = "dataset"
    source: Literal["upload", "local"]
    format: Literal["jsonl", "parquet", "folder"]
    rows: int | None = Field(None, description="Null for a registered folder not yet read.")
    columns: list[str] = []
    size: int
    digest: str | None = Field(None, description="Null for a registered dataset not yet read.")
    created_at: datetime | None = None


class DatasetPage(AnswerModel):
    """All datasets the service knows."""

    object: Literal["list"] = "list"
    data: list[Dataset]


class Model(AnswerModel):
    """A registered local base model."""

    id: str
    object: Literal["model"] = "model"
    source: Literal["local"] = "local"
    architecture: str | None = None
    model_type: str | None = None
    size: int
    usable: bool
    problem: str | None = Field(None, description="Why it is not usable.")


class ModelPage(AnswerModel):
    """All registered local base models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(AnswerModel):
    """Liveness or readiness; ``checks`` names each dependency."""

    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, str] = {}


class Version(AnswerModel):
    """Versions that matter when results are compared."""

    fimlora: str
    api: Literal["v1"] = "v1"
