"""What the tools answer: short, with what to do next; each is the schema that a client is told."""

from collections import defaultdict
from typing import Any

from pydantic import BaseModel, Field

from fimlora_client.results import Result
from fimlora_contract.budgets import budget_words
from fimlora_contract.estimates import Estimate
from fimlora_contract.jobs import Job
from fimlora_contract.plans import Plan
from fimlora_contract.rank_maps import RankMap

_FAULTS = 20
_NO_SIGNAL = "These ranks do not follow from the task: method uniform would do as well. "


class TypeRanks(BaseModel):
    """Ranks of the modules of one type, over all layers."""

    lowest: int
    mean: float
    highest: int


class PlanSummary(BaseModel):
    """A plan in a few numbers; the whole of it is in the files."""

    method: str | None = Field(description="What made the scores.")
    modules: int = Field(description="Modules that get LoRA.")
    parameters: int = Field(description="Trainable parameters of all A and B.")
    rank_lowest: int
    rank_highest: int
    by_type: dict[str, TypeRanks] = Field(description="Such as self_attn.q_proj.")
    signal: str | None = Field(
        default=None, description="Whether the plan follows from the task, in a sentence."
    )
    warnings: list[str] = Field(default=[], description="What to mind before training by it.")


class Candidate(BaseModel):
    """What can be given by name."""

    name: str
    about: str


class Candidates(BaseModel):
    """Names that the service knows."""

    names: list[Candidate]
    next_step: str


class Cost(BaseModel):
    """What a calibration would need; nothing was queued."""

    outcome: str = Field(
        description="cached, shared or replanned: no new measurement; measured: a worker measures."
    )
    budget: str = Field(description="The budget as it was understood.")
    parameters: int | None = Field(description="Of the base model.")
    target_modules: int | None
    budget_check: str = Field(description="Whether the budget can be met, or who will know.")
    batches: int
    bytes_to_fetch: int
    memory_bytes: int = Field(description="The least, with one block on the device at a time.")
    fits: bool | None = Field(description="Some living worker has the memory; null: unknown.")
    wait_s: float | None = Field(description="Until a worker is free; null: unknown.")
    next_step: str


class Calibrated(BaseModel):
    """Where a calibration stands, and its plan once it has one."""

    job_id: str
    status: str
    cached: bool = Field(
        default=False, description="An equal request had been answered before."
    )
    plan: PlanSummary | None = None
    digest: str | None = Field(default=None, description="Content address of the result.")
    files: list[str] = Field(default=[], description="What was written, if a folder was given.")
    pinned: str | None = None
    next_step: str


class Alternative(BaseModel):
    """Another plan from what a job has measured; nothing was kept."""

    job_id: str
    plan: PlanSummary
    next_step: str


class Fetched(BaseModel):
    """A configuration, as text or in files."""

    digest: str
    files: list[str] = []
    text: str | None = Field(default=None, description="Left out where a folder was given.")
    next_step: str


class Fault(BaseModel):
    """Where an adapter is not as planned."""

    code: str
    module: str
    planned: str
    found: str
    message: str


class Verified(BaseModel):
    """Whether an adapter is what was planned."""

    as_planned: bool
    sentence: str
    modules: int
    parameters: int
    faults: list[Fault] = Field(description=f"The first {_FAULTS}.")
    more_faults: int = Field(default=0, description="How many there are beyond these.")
    notes: list[str] = []
    next_step: str


def summary(rank_map: RankMap) -> PlanSummary:
    """A plan in a few numbers."""
    ranks = defaultdict(list)
    for module in rank_map.modules:
        ranks[module.kind].append(module.rank)
    used = [module.rank for module in rank_map.modules if module.rank]
    return PlanSummary(
        method=rank_map.method,
        modules=len(used),
        parameters=rank_map.spent["parameters"],
        rank_lowest=min(used, default=0),
        rank_highest=max(used, default=0),
        by_type={
            kind: TypeRanks(lowest=min(r), mean=round(sum(r) / len(r), 2), highest=max(r))
            for kind, r in ranks.items()
        },
        signal=rank_map.signal.sentence if rank_map.signal else None,
        warnings=[warning.message for warning in rank_map.warnings],
    )


def cost(found: Estimate, budget: dict[str, Any]) -> Cost:
    """An estimate in a few numbers."""
    fits = [worker.resident or worker.streamed for worker in found.memory.workers]
    known = [fit for fit in fits if fit is not None]
    return Cost(
        outcome=found.outcome,
        budget=budget_words(budget),
        parameters=found.model.parameters,
        target_modules=found.model.target_modules,
        budget_check=_budget_check(found),
        batches=found.batches,
        bytes_to_fetch=found.fetch.model_bytes + found.fetch.dataset_bytes,
        memory_bytes=min(found.memory.resident_bytes, found.memory.streamed_bytes),
        fits=any(known) if known else None,
        wait_s=found.queue.wait_s,
        next_step="calibrate with the same arguments."
        if not known or any(known)
        else "No worker has the memory: ask for fewer or shorter examples, or a larger worker.",
    )


def _budget_check(found: Estimate) -> str:
    interval = found.model.budget
    if interval is None:
        return found.model.note or "not known"
    ends = f"{interval.unit} from {interval.lowest:,g} to {interval.highest:,g}"
    return f"{'feasible' if interval.is_feasible else 'not feasible'}: {ends}"


def calibrated(result: Result, *, files: list[str], pinned: str | None) -> Calibrated:
    """A calibration that has succeeded."""
    verify = "Train with it, then verify the adapter or the run's folder against this job."
    fetch = "fetch_config with a folder writes the adapter's files."
    signal = result.rank_map.signal
    follows = "" if signal is None or signal.verdict != "none" else _NO_SIGNAL
    return Calibrated(
        job_id=result.job.id,
        status=result.job.status,
        cached=result.cached,
        plan=summary(result.rank_map),
        digest=result.digest,
        files=files,
        pinned=pinned,
        next_step=follows + (verify if files else fetch),
    )


def unfinished(job: Job) -> Calibrated:
    """A calibration that goes on."""
    return Calibrated(
        job_id=job.id,
        status=job.status,
        cached=job.cached,
        next_step=f"It goes on: wait_for_job with job_id {job.id}.",
    )


def alternative(plan: Plan, asked: dict[str, Any]) -> Alternative:
    """Another plan, and what it was asked for with."""
    words = ", ".join(f"{name} {value}" for name, value in asked.items())
    return Alternative(
        job_id=plan.job_id,
        plan=summary(plan.rank_map),
        next_step=f"To keep it, calibrate with the job's base_model, dataset and other arguments and "
        f"{words}: nothing is measured again.",
    )


def verified(found: dict[str, Any]) -> Verified:
    """What the engine found."""
    faults = [Fault(**fault) for fault in found["faults"]]
    return Verified(
        as_planned=found["as_planned"],
        sentence=found["sentence"],
        modules=found["found"]["modules"],
        parameters=found["found"]["parameters"],
        faults=faults[:_FAULTS],
        more_faults=max(0, len(faults) - _FAULTS),
        notes=found["notes"],
        next_step=found["next_step"]
        or "It is what was planned: to be trained, or if it has been, evaluated and served.",
    )
