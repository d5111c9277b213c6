"""From an accepted request to a written adapter: the story of one attempt."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fimlora import RankPlan, Statistics, score, write_adapter
from fimlora import __version__ as engine_version
from fimlora.statistics.options import Execution
from fimlora_contract.jobs import Stage
from fimlora_contract.references import HubDataset
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.datasets.columns import TextFields, find_fields
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.inputs.calibration_data import Drawn, PaddedBatches, draw
from fimlora_worker.inputs.device import choose_device
from fimlora_worker.inputs.examples import Encoder
from fimlora_worker.inputs.heads import ModelRequest
from fimlora_worker.inputs.labels import find_labels
from fimlora_worker.inputs.models import (
    choose_dtype,
    download_model,
    find_model,
    load_tokenizer,
    longest_input,
    read_config,
    weight_bytes,
)
from fimlora_worker.inputs.rows import Rows, open_rows
from fimlora_worker.job.measurement_progress import SavedSums
from fimlora_worker.job.measuring import measure_model
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.reuse import Measured, model_name, sources, write_again
from fimlora_worker.job.solving import solve
from fimlora_worker.job.sums_folders import sums_folder
from fimlora_worker.job.worker_process import WorkerProcess

log = logging.getLogger(__name__)
TASK_TYPES = {"sequence_classification": "SEQ_CLS", "causal_lm": "CAUSAL_LM"}
ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True)
class Accepted:
    """A request and what its references resolved to when it was accepted.

    Attributes:
        request: The request.
        resolved: Content of base model and dataset.
        measured: Statistics of an earlier job, when they are what this one would measure.
        memory_kills: Attempts that the system has ended for want of memory.
    """

    request: CalibrationRequest
    resolved: dict[str, Any]
    measured: Measured | None = None
    memory_kills: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a calibration came to.

    Attributes:
        plan: What was written.
        execution: How it was measured; ``None`` when nothing was.
    """

    plan: RankPlan
    execution: Execution | None = None


@dataclass(frozen=True)
class _Prepared:
    """Everything that measuring needs."""

    model: BaseModel
    batches: PaddedBatches
    drawn: Drawn
    fields: TextFields


def calibrate(
    accepted: Accepted, *, process: WorkerProcess, reporter: Reporter, folder: Path
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
        return Outcome(write_again(accepted.request, measured, reporter, folder=target))
    return _calibrate_model(accepted, process, reporter, folder)


def _calibrate_model(
    accepted: Accepted, process: WorkerProcess, reporter: Reporter, folder: Path
) -> Outcome:
    measured, target = accepted.measured, folder / ADAPTER_FOLDER
    model_folder, rows = _fetch(accepted, process, reporter)
    reporter.enter(Stage.LOADING)
    prepared = _prepare(accepted.request, accepted.resolved, model_folder, rows, process)
    if measured:
        statistics = measured.statistics
    else:
        sums = SavedSums(
            sums_folder(process.settings.tmp_dir, reporter.job_id),
            reporter.attempt,
            prepared.model.request.digest,
            reporter.on_resume,
        )
        statistics = measure_model(
            accepted.request,
            prepared.model,
            prepared.batches,
            reporter,
            folder=folder,
            sums=sums,
            memory_kills=accepted.memory_kills,
        )
    reporter.enter(Stage.ALLOCATING)
    plan = _allocate(accepted, statistics, prepared)
    reporter.enter(Stage.WRITING)
    write_adapter(
        plan,
        target,
        base_model=model_name(accepted.resolved),
        task_type=TASK_TYPES[prepared.fields.task],
        layout=accepted.request.adapter.layout,
        weights=accepted.request.adapter.weights,
        seed=accepted.request.calibration.seed,
        head=prepared.model.head() if accepted.request.adapter.weights else None,
        module_names=[name for name, _ in prepared.model.outline().named_modules()],
    )
    statistics.save(target / "statistics.safetensors")
    return Outcome(plan, statistics.execution)


def _fetch(accepted: Accepted, process: WorkerProcess, reporter: Reporter) -> tuple[Path, Rows]:
    request, resolved, settings = accepted.request, accepted.resolved, process.settings
    model, digests = resolved["base_model"], process.digests
    is_hub = model["source"] == "hub"
    if is_hub or isinstance(request.dataset, HubDataset):
        reporter.enter(Stage.DOWNLOADING)
    folder = download_model(model, settings) if is_hub else find_model(model, settings, digests)
    return folder, open_rows(request.dataset, resolved["dataset"], settings, digests)


def _prepare(
    request: CalibrationRequest,
    resolved: dict[str, Any],
    folder: Path,
    rows: Rows,
    process: WorkerProcess,
) -> _Prepared:
    calibration = request.calibration
    known = resolved["dataset"].get("fields")
    fields = (
        TextFields(**known)
        if known
        else find_fields(rows.names, columns=request.dataset.columns, task=calibration.task)
    )
    labels = find_labels(rows, fields.label) if fields.label else None
    weight_bytes(folder)  # or there are none that could be loaded
    digest = resolved["base_model"]["digest"]
    config, tokenizer = process.readers.get(
        digest, size=1, load=lambda: (read_config(folder), load_tokenizer(folder))
    )
    max_length = longest_input(calibration.max_length, tokenizer, config)
    drawn = draw(
        rows,
        Encoder(tokenizer, fields, max_length, labels),
        n_examples=calibration.n_batches * calibration.batch_size,
        seed=calibration.seed,
    )
    settings = process.settings
    device = choose_device(
        settings.device, lock=process.device_lock, visible=settings.cuda_visible_devices
    )
    model_request = ModelRequest(
        digest=digest,
        task=fields.task,
        dtype=choose_dtype(calibration.dtype, config, device=device),
        device=device,
        n_outputs=labels.n_outputs if labels else None,
        problem_type=labels.problem_type if labels else None,
    )
    batches = PaddedBatches(
        drawn.examples, batch_size=calibration.batch_size, pad_id=tokenizer.pad_token_id or 0
    )
    model = BaseModel(folder, config, model_request, tokenizer.pad_token_id, process.models)
    return _Prepared(model, batches, drawn, fields)


def _allocate(accepted: Accepted, statistics: Statistics, prepared: _Prepared) -> RankPlan:
    calibration = accepted.request.calibration
    provenance = {
        "engine": engine_version,
        **sources(accepted.resolved),
        "task": prepared.fields.task,
        "batch_size": calibration.batch_size,
        "max_length": calibration.max_length,
        "data_seed": calibration.seed,
        "requested_examples": calibration.n_batches * calibration.batch_size,
        "dropped_rows": prepared.drawn.n_dropped,
        "device": prepared.model.request.device,
    }
    allocation = accepted.request.allocation
    scores = score(statistics, rule=allocation.rule, aggregation=allocation.aggregation)
    return solve(accepted.request, scores, provenance=provenance)
