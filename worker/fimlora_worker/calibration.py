"""From an accepted request to a written adapter: the story of one attempt."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fimlora import RankPlan, Statistics, allocate, find_targets, measure, write_adapter
from fimlora import __version__ as engine_version
from fimlora.adapter import head_tensors
from fimlora.plan import Budget
from fimlora.spectra import N_VALUES
from fimlora_contract.columns import TextFields, find_fields
from fimlora_contract.jobs import Stage
from fimlora_contract.references import HubDataset
from fimlora_contract.requests import CalibrationRequest
from fimlora_worker.calibration_data import Drawn, PaddedBatches, draw
from fimlora_worker.device import choose_device
from fimlora_worker.examples import Encoder
from fimlora_worker.labels import find_labels
from fimlora_worker.models import (
    LoadedModel,
    ModelRequest,
    choose_dtype,
    download_model,
    find_model,
    load_model,
    load_tokenizer,
    longest_input,
    read_config,
    weight_bytes,
)
from fimlora_worker.process import WorkerProcess
from fimlora_worker.progress import Reporter
from fimlora_worker.reuse import Measured, model_name, sources, write_again
from fimlora_worker.rows import Rows, open_rows

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
    """

    request: CalibrationRequest
    resolved: dict[str, Any]
    measured: Measured | None = None


@dataclass(frozen=True)
class _Prepared:
    """Everything that measuring needs."""

    loaded: LoadedModel
    batches: PaddedBatches
    drawn: Drawn
    fields: TextFields
    model_request: ModelRequest


def calibrate(
    accepted: Accepted, *, process: WorkerProcess, reporter: Reporter, folder: Path
) -> RankPlan:
    """Measure, allocate and write; the adapter and its statistics end in ``folder``.

    Args:
        accepted: The job.
        process: Caches and settings of this process.
        reporter: Told about every stage and batch; ends the attempt by raising.
        folder: An existing folder; the result is written to a new one inside.

    Returns:
        The plan that was written.
    """
    measured, target = accepted.measured, folder / ADAPTER_FOLDER
    if measured and measured.suffices_for(accepted.request):
        return write_again(accepted.request, measured, reporter, folder=target)
    return _calibrate_model(accepted, process, reporter, target)


def _calibrate_model(
    accepted: Accepted, process: WorkerProcess, reporter: Reporter, target: Path
) -> RankPlan:
    measured = accepted.measured
    model_folder, rows = _fetch(accepted, process, reporter)
    reporter.enter(Stage.LOADING)
    prepared = _prepare(accepted.request, accepted.resolved, model_folder, rows, process)
    statistics = (
        measured.statistics if measured else _measure(accepted.request, prepared, reporter)
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
        head=head_tensors(prepared.loaded.model),
        module_names=[name for name, _ in prepared.loaded.model.named_modules()],
    )
    statistics.save(target / "statistics.safetensors")
    return plan


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
    size, digest = weight_bytes(folder), resolved["base_model"]["digest"]
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
    wanted = ModelRequest(
        digest=digest,
        task=fields.task,
        dtype=choose_dtype(calibration.dtype, config, device=device),
        device=device,
        n_outputs=labels.n_outputs if labels else None,
        problem_type=labels.problem_type if labels else None,
    )
    loaded: LoadedModel = process.models.get(
        wanted, size=size, load=lambda: load_model(folder, config, wanted)
    )
    loaded.model.config.pad_token_id = tokenizer.pad_token_id
    batches = PaddedBatches(
        drawn.examples, batch_size=calibration.batch_size, pad_id=tokenizer.pad_token_id or 0
    )
    return _Prepared(loaded, batches, drawn, fields, wanted)


def _measure(
    request: CalibrationRequest, prepared: _Prepared, reporter: Reporter
) -> Statistics:
    model, calibration = prepared.loaded.model, request.calibration
    _check_budget(request, model)
    reporter.enter(Stage.CALIBRATING, n_batches=len(prepared.batches))
    return measure(
        model,
        prepared.batches,
        target_modules=request.target_modules,
        n_batches=calibration.n_batches,
        estimator=calibration.estimator,
        seed=calibration.seed,
        scale=request.adapter.scale,
        record="spectra" if request.allocation.rule == "spectral" else (),
        on_batch=reporter.on_batch,
    )


def _check_budget(request: CalibrationRequest, model: Any) -> None:
    """Solve with equal scores first: an infeasible budget costs no calibration."""
    modules = find_targets(model, request.target_modules)
    n_parameters = sum(p.numel() for p in model.parameters())
    scores: dict[str, Any] = {m.name: 1.0 for m in modules}
    if request.allocation.rule == "spectral":
        scores = {m.name: [1.0] * min(m.d_in, m.d_out, N_VALUES) for m in modules}
    _solve(request, scores, modules=modules, base_parameters=n_parameters)


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
        "device": prepared.model_request.device,
    }
    return _solve(
        accepted.request,
        statistics,
        aggregation=accepted.request.allocation.aggregation,
        provenance=provenance,
    )


def _solve(request: CalibrationRequest, scores: Any, **options: Any) -> RankPlan:
    allocation, budget = request.allocation, request.budget
    return allocate(
        scores,
        budget=Budget(budget.unit, budget.value, budget.bytes_per_parameter),
        rule=allocation.rule,
        r_min=allocation.r_min,
        r_max=allocation.r_max,
        multiple_of=allocation.multiple_of,
        seed=allocation.seed,
        scale=request.adapter.scale,
        **options,
    )
