"""Jobs as clients see them."""

from datetime import UTC, datetime
from enum import StrEnum
from html import escape
from typing import Any, Literal

from pydantic import Field, computed_field

from fimlora_contract.artifacts import JobResult
from fimlora_contract.base import AnswerModel
from fimlora_contract.charts.notebook import bundle, evaluation_bundle, plan_bundle
from fimlora_contract.comparisons import ComparisonResult
from fimlora_contract.problems import PROBLEMS
from fimlora_contract.rank_maps import RankMap
from fimlora_contract.verdicts import EvaluationResult


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


class JobKind(StrEnum):
    """What a job is for; the kinds share queue, states, events and everything asked of jobs."""

    CALIBRATION = "calibration"
    EVALUATION = "evaluation"
    COMPARISON = "comparison"


class Stage(StrEnum):
    """What a running job is doing."""

    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    FITTING_HEAD = "fitting_head"
    CALIBRATING = "calibrating"
    ALLOCATING = "allocating"
    TRAINING = "training"
    JUDGING = "judging"
    WRITING = "writing"
    COMMITTING = "committing"


class RunProgress(AnswerModel):
    """How far an evaluation is, and the run that the worker that speaks for it is in."""

    done: int = Field(description="Runs that are finished and kept.")
    n_runs: int = Field(description="Runs in all; more if the grid of rates is widened.")
    at_once: int = Field(1, description="Runs that are being trained now, by any worker.")
    arm: str | None = Field(None, description="Null while only other workers train.")
    phase: Literal["tuning", "final"] | None = None
    learning_rate: float | None = None
    seed: int | None = None
    step: int = 0
    n_steps: int = 0


class ShardProgress(AnswerModel):
    """How far the shards of a calibration are; batches are counted over all of them."""

    done: int = Field(description="Shards that are measured and kept.")
    n_shards: int
    at_once: int = Field(description="Shards that are being measured now, by any worker.")


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
    runs: RunProgress | None = Field(
        default=None, description="Of an evaluation while it trains."
    )
    shards: ShardProgress | None = Field(
        default=None, description="Of a calibration whose batches are shared by workers."
    )
    waiting_for: str | None = Field(
        default=None,
        description="What the operator has to see to before the job can go on, such as a full disk.",
    )


class AttemptEnd(StrEnum):
    """Why an attempt ended that did not end its job."""

    HANDED_OVER = "handed_over"
    MADE_ROOM = "made_room"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    WORKER_LOST = "worker_lost"
    OUT_OF_MEMORY_HOST = "out_of_memory_host"


class EarlierAttempt(AnswerModel):
    """An attempt that another one has followed."""

    attempt: int
    reason: AttemptEnd = Field(
        description="`handed_over`: its worker was told to stop. `made_room`: others went first."
    )
    counted: bool = Field(description="Whether it counts against the three that may be lost.")
    detail: str | None = None
    ended_at: datetime


class JobError(AnswerModel):
    """Why a job failed, with the same codes as problem documents."""

    code: str
    detail: str
    retryable: bool = False

    @computed_field(description="What to do about it; empty for a code that is not known.")  # type: ignore[prop-decorator]
    @property
    def next_step(self) -> str:
        """The next step of its code."""
        kind = PROBLEMS.get(self.code)
        return kind.next_step if kind else ""


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
    n_shards: int = Field(
        1, description="In how many parts the batches were measured, by any worker."
    )


class CalibrationResult(JobResult):
    """What a succeeded calibration delivers; polling alone is enough to use it."""

    adapter_config: dict[str, Any]
    rank_map: RankMap
    execution: Execution | None = Field(
        None, description="Null when the statistics of another job were used."
    )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """What a notebook shows."""
        return plan_bundle(self.rank_map.model_dump(mode="json"))


AnyResult = CalibrationResult | EvaluationResult | ComparisonResult
RESULTS: dict[JobKind, type[AnyResult]] = {
    JobKind.CALIBRATION: CalibrationResult,
    JobKind.EVALUATION: EvaluationResult,
    JobKind.COMPARISON: ComparisonResult,
}


class Job(AnswerModel):
    """One accepted request."""

    id: str
    object: Literal["job"] = "job"
    kind: JobKind = Field(
        JobKind.CALIBRATION, description="Decides what request and result are."
    )
    status: JobStatus
    attempt: int = Field(description="Number of the current or last try, from 1.")
    earlier_attempts: list[EarlierAttempt] = Field(
        [], description="How attempts before this one ended; the newest twenty, oldest first."
    )
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
    result: AnyResult | None = Field(None, description="Set only when succeeded.")
    statistics_from: str | None = Field(
        None, description="The job whose statistics were used instead of measuring again."
    )
    cached: bool = Field(False, description="This request had already succeeded before.")
    requests: int = Field(
        1, description="How many equal requests share the job; a cancel withdraws one of them."
    )
    owner: str = Field(
        "",
        description="The tenant that it belongs to; empty for the operator, or without keys.",
    )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """What a notebook shows: what was found, or where the job stands."""
        said = f"job {self.id} is {self.status}"
        if self.error is not None:
            said += f": {self.error.code}: {self.error.detail}"
        if isinstance(self.result, CalibrationResult):
            rank_map = self.result.rank_map.model_dump(mode="json")
            shown = plan_bundle(rank_map, day=f"{self.created_at:%Y-%m-%d}")
        elif isinstance(self.result, EvaluationResult):
            shown = evaluation_bundle(self.result.model_dump(mode="json"))
        else:
            return bundle(f"<p>{escape(said)}</p>", said, "ranks", {})
        return shown | {"text/html": f"<p>{escape(said)}</p>{shown['text/html']}"}


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
    reason: AttemptEnd | None = Field(
        None, description="Why the attempt before ended, when another one is queued."
    )

    @computed_field(description="When it was, by the store's clock; it is told by the id.")  # type: ignore[prop-decorator]
    @property
    def at(self) -> datetime | None:
        """When it was."""
        milliseconds = self.id.partition("-")[0]
        if not (milliseconds.isdecimal() and len(milliseconds) < 15):
            return None
        return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


class JobEventPage(AnswerModel):
    """Oldest events first; pass ``next_cursor`` as ``after`` for the following page."""

    object: Literal["list"] = "list"
    data: list[JobEvent]
    next_cursor: str | None = None
