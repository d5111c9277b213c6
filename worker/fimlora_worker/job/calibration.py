"""From an accepted request to a written adapter: the story of one attempt."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fimlora import RankPlan, Statistics, score, write_adapter
from fimlora import __version__ as engine_version
from fimlora.confidence.evidence import with_confidence
from fimlora.confidence.signal import source_if_any, with_signal
from fimlora.measuring.head.fitted import head_of
from fimlora.methods.expert_choice import with_experts
from fimlora.model.saved_whole import facts_of_saved
from fimlora.model.targets import facts_of_ties
from fimlora.plan import TargetModule
from fimlora.statistics.options import Execution
from fimlora_contract.jobs import Stage
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.record import JobRecord
from fimlora_jobs.results.store import STATISTICS
from fimlora_worker.inputs.heads import TASK_TYPES
from fimlora_worker.inputs.trained_adapter import find_point
from fimlora_worker.job.commit import commit_adapter
from fimlora_worker.job.contrast import measure_contrast
from fimlora_worker.job.known_model import known_model
from fimlora_worker.job.measurement_progress import MeasurementProgress
from fimlora_worker.job.measuring import measure_model
from fimlora_worker.job.preparation import Prepared, fetch, prepare
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.reuse import Measured, find_measured, model_name, sources, write_again
from fimlora_worker.job.rounds import measure_in_rounds
from fimlora_worker.job.shard_lead import measure_in_shards
from fimlora_worker.job.shards import n_shards_of
from fimlora_worker.job.solving import experts_of, solve
from fimlora_worker.job.work_folders import progress_folder
from fimlora_worker.job.worker_process import WorkerProcess

ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True)
class AcceptedJob:
    """A request and what its references resolved to when it was accepted.

    Attributes:
        request: The request.
        resolved: Content of base model and dataset.
        measured: Statistics of an earlier job, when they are what this one would measure.
        memory_kills: What attempts asked for that the system has ended for want of memory.
        shares: Whether other workers may measure a part of it.
    """

    request: CalibrationRequest
    resolved: dict[str, Any]
    measured: Measured | None = None
    memory_kills: tuple[str, ...] = ()
    shares: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a calibration came to.

    Attributes:
        plan: What was written.
        execution: How it was measured; ``None`` when nothing was.
    """

    plan: RankPlan
    execution: Execution | None = None


def run(
    record: JobRecord, process: WorkerProcess, reporter: Reporter, folder: Path
) -> dict[str, Any]:
    """Carry out a calibration that is on record, and answer its result."""
    request = CalibrationRequest.model_validate(record.request)
    measured = find_measured(record, process)
    accepted = AcceptedJob(request, record.resolved, measured, record.memory_kills, shares=True)
    outcome = calibrate(accepted, process=process, reporter=reporter, folder=folder)
    result = commit_adapter(folder / ADAPTER_FOLDER, process, reporter)
    # Beside the artefacts, not among them: they are the same however it was measured.
    return result | {"execution": asdict(outcome.execution) if outcome.execution else None}


def calibrate(
    accepted: AcceptedJob, *, process: WorkerProcess, reporter: Reporter, folder: Path
) -> Outcome:
    """Measure, allocate and write; the adapter and its statistics end in ``folder``.

    Args:
        accepted: The job.
        process: Caches and settings of this process.
        reporter: Told about every stage and batch; ends the attempt by raising.
        folder: An existing folder; the result is written to a new one inside.

    Returns:
        The plan that was written, and how it was measured.
    """
    measured, target = accepted.measured, folder / ADAPTER_FOLDER
    if measured and measured.suffices_for(accepted.request):
        model = known_model(
            accepted.resolved["base_model"], measured.written.config["task_type"], process
        )
        plan = write_again(accepted.request, measured, reporter, folder=target, model=model)
        return Outcome(plan)
    return _calibrate_model(accepted, process, reporter, folder)


def _calibrate_model(
    accepted: AcceptedJob, process: WorkerProcess, reporter: Reporter, folder: Path
) -> Outcome:
    request, resolved = accepted.request, accepted.resolved
    model_folder, rows = fetch(request, resolved, process=process, reporter=reporter)
    reporter.enter(Stage.LOADING)
    prepared = prepare(
        request,
        resolved,
        folder=model_folder,
        rows=rows,
        process=process,
        # A trained adapter has its head with it.
        fits_head=accepted.measured is None and "adapter" not in resolved,
        on_example=reporter.keep_alive,
    )
    statistics, rounds = (
        (accepted.measured.statistics, accepted.measured.rounds)
        if accepted.measured
        else measure(accepted, prepared, process, reporter, folder)
    )
    reporter.enter(Stage.ALLOCATING)
    plan = _allocate(accepted, statistics, prepared, rounds)
    reporter.enter(Stage.WRITING)
    _write(accepted, plan, statistics, prepared, folder / ADAPTER_FOLDER)
    statistics.save(folder / ADAPTER_FOLDER / STATISTICS)
    return Outcome(plan, statistics.execution)


def measure(
    accepted: AcceptedJob,
    prepared: Prepared,
    process: WorkerProcess,
    reporter: Reporter,
    folder: Path,
) -> tuple[Statistics, dict[str, Any]]:
    """Measure what a job asks for, from where an earlier attempt of it was.

    Returns:
        The statistics, and how the number of batches came about where that was not asked for.
    """
    progress = MeasurementProgress(
        progress_folder(process.settings.tmp_dir, reporter.job_id),
        reporter.attempt,
        prepared.model.request.digest,
        reporter.on_resume,
    )
    given: dict[str, Any] = {
        "folder": folder,
        "progress": progress,
        "head_batches": prepared.head_batches,
        "memory_kills": accepted.memory_kills,
    }
    request, model, batches = accepted.request, prepared.model, prepared.batches
    if request.calibration.n_batches == "auto":
        rounds = measure_in_rounds(request, model, batches, reporter, **given)
        return rounds.statistics, rounds.provenance()
    if prepared.retain_batches is not None:
        given.pop("head_batches")
        return measure_contrast(request, prepared, reporter, **given), {}
    if "adapter" in accepted.resolved:
        reference, settings = accepted.resolved["adapter"], process.settings
        given["point"] = find_point(
            reference, data_dir=settings.data_dir, digests=process.digests, work=folder
        )
    n_shards = n_shards_of(request, model, len(batches), process) if accepted.shares else 1
    if n_shards > 1:
        shared = request, model, batches, reporter, process, n_shards
        return measure_in_shards(*shared, **given), {}
    return measure_model(request, model, batches, reporter, **given), {}


def _allocate(
    accepted: AcceptedJob,
    statistics: Statistics,
    prepared: Prepared,
    rounds: Mapping[str, Any],
) -> RankPlan:
    allocation = accepted.request.allocation
    statistics = with_experts(statistics, experts_of(accepted.request))
    scores = score(statistics, allocation.method, aggregation=allocation.aggregation)
    facts = facts_of(accepted, prepared, rounds, statistics.modules)
    plan = solve(accepted.request, scores, provenance=facts)
    source = source_if_any(
        statistics, allocation.method, scale=plan.scale, aggregation=allocation.aggregation
    )
    plan = with_signal(plan, source)
    return with_confidence(statistics, plan)


def facts_of(
    accepted: AcceptedJob,
    prepared: Prepared,
    rounds: Mapping[str, Any],
    modules: Iterable[TargetModule],
) -> dict[str, Any]:
    """What a plan for these modules says of where it came from, beside what statistics say."""
    calibration = accepted.request.calibration
    n_batches = rounds["n_batches_by"]["used"] if rounds else calibration.most_batches
    used = prepared.drawn.first(n_batches * calibration.batch_size)
    saved, names = prepared.model.saved, {module.name for module in modules}
    return {
        "engine": engine_version,
        **sources(accepted.resolved),
        **facts_of_saved(saved),
        **facts_of_ties(prepared.model.outline(), names, saved=[each.name for each in saved]),
        "task": prepared.model.request.task,
        "batch_size": calibration.batch_size,
        "max_length": calibration.max_length,
        "data_seed": calibration.seed,
        "requested_examples": n_batches * calibration.batch_size,
        "dropped_rows": used.n_dropped,
        **rounds,
        **prepared.label_facts(used.examples),
        "problem_type": prepared.model.request.problem_type,
        "device": prepared.model.request.device,
    }


def _write(
    accepted: AcceptedJob,
    plan: RankPlan,
    statistics: Statistics,
    prepared: Prepared,
    folder: Path,
) -> None:
    adapter, model = accepted.request.adapter, prepared.model
    fitted = head_of(statistics)
    write_adapter(
        plan,
        folder,
        base_model=model_name(accepted.resolved),
        task_type=TASK_TYPES[prepared.model.request.task],
        layout=adapter.layout,
        weights=adapter.weights,
        init=adapter.initial,
        statistics=statistics,
        seed=accepted.request.calibration.seed,
        head=model.whole_weights(fitted.weights if fitted else {}) if adapter.weights else None,
        modules_to_save=model.whole_modules(),
        model=model.outline(),
        other_model=model.other_skeleton(),
    )
