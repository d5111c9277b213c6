"""What POST /calibrate would do with a request, without doing it."""

import math
from collections.abc import Sequence

from fimlora.adapter.initial.registry import init_passes
from fimlora.methods.registry import passes_needed
from fimlora.statistics.options import Passes
from fimlora_contract.estimates import (
    Estimate,
    FetchEstimate,
    MemoryEstimate,
    ModelEstimate,
    QueueEstimate,
    WorkerFit,
)
from fimlora_contract.references import HubDataset
from fimlora_contract.requests import CalibrationRequest
from fimlora_contract.workers import Worker
from fimlora_jobs.counters import read_counters
from fimlora_jobs.datasets.columns import MEDIA
from fimlora_jobs.dtypes import choose_dtype
from fimlora_jobs.workers import WorkerRegistry
from fimlora_service.calibrations.checkpoint_sizes import (
    Checkpoint,
    budget_interval,
    find_target_shapes,
    measure_checkpoint,
)
from fimlora_service.calibrations.earlier_jobs import find_open, find_reusable
from fimlora_service.calibrations.job_spec import JobSpec
from fimlora_service.calibrations.memory import (
    Demand,
    demand_of,
    find,
    recorded_at_point,
    recorded_bytes,
)
from fimlora_service.calibrations.shown import Shown, shown_in, shown_unread
from fimlora_service.calibrations.submission import Submission
from fimlora_service.resolve.model_files import ResolvedModel
from fimlora_service.resolve.resolver import Resolved
from fimlora_service.resolve.saved_checks import saved_parameters

# Why no interval of the budget is known before a worker has the model.
BY_MODEL = (
    "the loaded model alone tells which of its modules are targets: the worker checks the budget "
    "before it measures, and the job fails with budget_infeasible if no plan meets it"
)
BY_RULES = (
    "ties, rules per type and layers are weighed when ranks are shared: the worker checks the "
    "budget before it measures, and the job fails with budget_infeasible if no plan meets it"
)


def make_estimate(request: CalibrationRequest, submission: Submission) -> Estimate:
    """Resolve a request and sum up what is known.

    Raises:
        ServiceError: POST /calibrate would refuse it, too.
    """
    submission.check_webhook(request)
    return estimate_of(request, submission.resolver.resolve(request), submission)


def estimate_of(
    request: CalibrationRequest, resolved: Resolved, submission: Submission
) -> Estimate:
    """Sum up what is known of a request that was resolved."""
    spec = JobSpec.of(request, resolved)
    reusable = find_reusable(spec, submission.store, submission.artifacts)
    to_fetch = submission.resolver.bytes_to_fetch(request, resolved)
    workers = WorkerRegistry(submission.store).living()
    model, config = resolved.model, resolved.model.config
    experts = find(config, ("num_experts_per_tok",))
    checkpoint = measure_checkpoint(model.shapes, experts_per_token=max(1, experts))
    own = config.get("dtype") or config.get("torch_dtype")
    dtype = choose_dtype(request.calibration.dtype, own, device=device_of(workers))
    recorded = (
        recorded_at_point(request, resolved.adapter_ranks)
        if resolved.adapter_ranks
        else recorded_bytes(request, shapes=model.shapes, config=config)
    )
    shown = _shown(request, resolved)
    demand = demand_of(
        checkpoint,
        config,
        request.calibration,
        dtype=dtype,
        recorded=recorded,
        passes=Passes.most(
            [passes_needed(*request.methods_measured), init_passes(request.adapter.initial)]
        ),
        n_shown=shown.positions,
    )
    open_job = find_open(spec, submission.store)
    helps = reusable.result or reusable.measured
    # Without a measurement it is answered at once, or queued in front.
    return Estimate(
        outcome="shared" if open_job else reusable.outcome,
        job_id=open_job or (helps.id if helps else None),
        request_digest=resolved.digest,
        resolved=resolved.references,
        batches=count_batches(request, resolved),
        fetch=FetchEstimate(model_bytes=to_fetch.model, dataset_bytes=to_fetch.dataset),
        model=model_estimate(request, model, checkpoint, demand),
        memory=describe_memory(demand, dtype, workers, note=shown.note),
        queue=describe_queue(request, submission, workers, is_answered=bool(helps or open_job)),
    )


def count_batches(request: CalibrationRequest, resolved: Resolved) -> int:
    """Batches of all datasets that are measured, at most."""
    calibration = request.calibration
    counts = [
        resolved.references[role].get("rows")
        for role in ("dataset", "retain")
        if role in resolved.references
    ]
    return sum(
        calibration.most_batches
        if rows is None
        else min(calibration.most_batches, math.ceil(rows / calibration.batch_size))
        for rows in counts
    )


def describe_queue(
    request: CalibrationRequest,
    submission: Submission,
    workers: Sequence[Worker],
    *,
    is_answered: bool,
) -> QueueEstimate:
    """The line a job would stand in; none if another one answers or it need not measure."""
    if is_answered:
        return QueueEstimate(ahead=0, workers=len(workers), wait_s=0.0)
    transport = submission.transport
    ahead = transport.n_high() if request.priority == "high" else transport.depth()
    mean_s = read_counters(submission.store).mean_s
    idle = sum(worker.state == "idle" for worker in workers)
    n_before = max(0, ahead + 1 - idle)
    wait_s = None if mean_s is None or not workers else n_before * mean_s / len(workers)
    return QueueEstimate(
        ahead=ahead,
        workers=len(workers),
        wait_s=0.0 if workers and not n_before else wait_s,
    )


def device_of(workers: Sequence[Worker]) -> str:
    """The kind of device that would run a job: a GPU unless all living workers have none."""
    return "cpu" if workers and all(w.device == "cpu" for w in workers) else "cuda"


def _shown(request: CalibrationRequest, resolved: Resolved) -> Shown:
    """What rows show besides text, as far as they are here."""
    config = resolved.model.config
    if not isinstance(request.dataset, HubDataset):
        return shown_in(config, resolved.references["dataset"].get("media", ()))
    columns = request.dataset.columns
    return shown_unread(config, [k for role, k in MEDIA.items() if getattr(columns, role)])


def model_estimate(
    request: CalibrationRequest, model: ResolvedModel, checkpoint: Checkpoint, demand: Demand
) -> ModelEstimate:
    """The model and its targets, as far as its files tell."""
    shapes, config = model.shapes, model.config
    targets = find_target_shapes(request, shapes=shapes, config=config)
    size = checkpoint.parameters
    interval = budget_interval(request, targets, parameters=size) if targets else None
    return ModelEstimate(
        parameters=size,
        weight_bytes=demand.weights,
        target_modules=len(targets) if targets else None,
        budget=interval,
        note=None if interval else (BY_RULES if targets else BY_MODEL),
        saved_parameters=saved_parameters(request, shapes=shapes, config=config),
    )


def describe_memory(
    demand: Demand, dtype: str, workers: Sequence[Worker], *, note: str | None = None
) -> MemoryEstimate:
    """The memory that is needed, against what each worker has."""
    return MemoryEstimate(
        dtype=dtype,
        resident_bytes=demand.resident,
        streamed_bytes=demand.streamed,
        boundary_bytes=demand.boundary,
        workers=[fit(demand, worker) for worker in workers],
        note=note,
    )


def fit(demand: Demand, worker: Worker) -> WorkerFit:
    """Whether a worker has the memory; boundaries may go to disk, so they are not counted."""
    memory = worker.memory_bytes
    return WorkerFit(
        name=worker.name,
        device=worker.device,
        memory_bytes=memory,
        resident=None if memory is None else demand.resident <= memory,
        streamed=None if memory is None else demand.streamed <= memory,
    )
