"""What a calibration would need and cost, known before anything is fetched or queued."""

from typing import Any, Literal

from pydantic import Field

from fimlora_contract.base import AnswerModel, is_unknown
from fimlora_contract.budgets import BudgetUnit


class FetchEstimate(AnswerModel):
    """Bytes that a worker would download; 0 for what is local."""

    model_bytes: int = Field(description="Files of the base model that are not there yet.")
    dataset_bytes: int = Field(description="All files of the dataset; a split may need fewer.")


class BudgetInterval(AnswerModel):
    """What the budget may be with the bounds of the request, in the unit of its budget."""

    unit: BudgetUnit
    lowest: float
    highest: float
    is_feasible: bool = Field(description="Whether the budget of the request lies inside.")


class ModelEstimate(AnswerModel):
    """The base model as its weight files describe it; loading may drop or join a few maps."""

    parameters: int | None = Field(
        None, description="Quantised weights count as the numbers they stand for."
    )
    weight_bytes: int = Field(
        description="Of the checkpoint's tensors in the dtype of the run."
    )
    target_modules: int | None = Field(
        None,
        description="Null when only the loaded model can tell, as for some defaults.",
    )
    budget: BudgetInterval | None = Field(
        None, description="Null when the worker checks the budget; note says why."
    )
    note: str | None = Field(
        None, description="Why no interval of the budget is known.", exclude_if=is_unknown
    )
    saved_parameters: int | None = Field(
        None,
        description="Of modules_to_save, which train whole beside the budget; null without them, or "
        "when only the loaded model can tell.",
        exclude_if=is_unknown,
    )


class WorkerFit(AnswerModel):
    """Whether one living worker has the memory; null where its memory is not known."""

    name: str
    device: Literal["cpu", "cuda"]
    memory_bytes: int | None
    resident: bool | None
    streamed: bool | None


class MemoryEstimate(AnswerModel):
    """Memory that measuring needs, roughly.

    A worker measures resident if that fits its memory, else streamed, and runs as many
    examples at once as fit; these are the least, with which one example at a time can run.
    """

    dtype: str
    resident_bytes: int = Field(description="With the whole model on the device.")
    streamed_bytes: int = Field(description="With one block at a time on the device.")
    boundary_bytes: int = Field(
        description="Inputs of blocks that streaming keeps in host memory or on disk."
    )
    workers: list[WorkerFit]
    note: str | None = Field(
        None,
        description="Of rows with images or sounds: what of them is counted, and what is not.",
    )


class QueueEstimate(AnswerModel):
    """The line a job would stand in."""

    ahead: int = Field(description="Attempts that would run before it.")
    workers: int = Field(description="Living workers.")
    wait_s: float | None = Field(
        None,
        description="Until a worker is free for it, if jobs take as long as those before did on "
        "average; null when nobody can tell.",
    )


class Estimate(AnswerModel):
    """What POST /calibrate would do with the same body; nothing was queued or put on record."""

    object: Literal["estimate"] = "estimate"
    outcome: Literal["cached", "shared", "replanned", "measured"] = Field(
        description="An equal request has succeeded; one is open and its job would be shared; "
        "statistics would be reused; or a worker would measure."
    )
    job_id: str | None = Field(
        None, description="The job that has the result or statistics, or would be shared."
    )
    request_digest: str = Field(description="Equal for requests that must give equal results.")
    resolved: dict[str, Any] = Field(description="What the references resolve to.")
    batches: int = Field(
        description="Calibration batches at most, those of the rows to retain among them; as many "
        "as were asked for where nobody has counted the rows yet."
    )
    fetch: FetchEstimate
    model: ModelEstimate
    memory: MemoryEstimate
    queue: QueueEstimate


class EvaluationEstimate(Estimate):
    """What POST /evaluations would do with the same body; its memory is that of measuring."""

    n_arms: int = Field(description="Rank patterns that are trained, the controls among them.")
    n_runs: int = Field(description="Runs, if the grid of rates need not be widened.")
    most_runs: int = Field(description="Runs if it is widened at both ends.")
    n_steps: int = Field(description="Optimiser steps of each run.")
    train_s: float | None = Field(
        None,
        description="What `n_runs` take one after another, if they are as fast as those of an "
        "earlier evaluation of this model, batch size and length; null if there was none. "
        "Several workers share them.",
    )
