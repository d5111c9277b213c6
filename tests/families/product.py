"""Run the product on a family's checkpoint: a worker's job where a job can, else the library."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from families.media_rows import media_dataset
from families.registry import Family
from families.rows import BATCH_SIZE, batches, dataset, examples
from fimlora import (
    RankPlan,
    Settings,
    Statistics,
    allocate,
    load_plan,
    measure_folder,
    score,
    write_adapter,
)
from fimlora.model.skeleton import build_skeleton
from fimlora_contract.jobs import JobStatus
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.datasets.folders import FolderDigests
from fimlora_worker.inputs.model_cache import ModelCache
from fimlora_worker.job.calibration import AcceptedJob, calibrate
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.worker_process import WorkerProcess
from fimlora_worker.settings import Settings as WorkerSettings

MEAN_RANK, R_MIN, R_MAX = 3, 1, 8
JOB_KINDS = ("causal_lm", "classification", "media")


@dataclass(frozen=True)
class Wanted:
    """How a checkpoint is to be measured.

    Attributes:
        target_modules: As in a request.
        target_parameters: As in a request.
        executor: As in a request.
        dtype: As in a request.
        batch_size: Examples of a batch.
        one_at_a_time: Whether micro-batches have one example.
    """

    target_modules: Any = "all-linear"
    target_parameters: Any = None
    executor: str = "resident"
    dtype: str = "float32"
    batch_size: int = BATCH_SIZE
    one_at_a_time: bool = False


@dataclass(frozen=True)
class Product:
    """What came out.

    Attributes:
        statistics: What was measured.
        plan: The ranks.
        folder: The adapter.
    """

    statistics: Statistics
    plan: RankPlan
    folder: Path


def run(family: Family, checkpoint: Path, wanted: Wanted, out: Path) -> Product:
    """Measure, allocate and write."""
    if family.kind in JOB_KINDS:
        return _run_job(family, checkpoint, wanted, out)
    return _run_library(family, checkpoint, wanted, out)


def _run_job(family: Family, checkpoint: Path, wanted: Wanted, out: Path) -> Product:
    settings = WorkerSettings(data_dir=checkpoint.parents[1], device="cpu")
    settings.create_folders()
    request = CalibrationRequest.model_validate({
        "base_model": {"source": "local", "name": checkpoint.name},
        "dataset": {"source": "inline", "rows": _rows(family)},
        "budget": MEAN_RANK,
        "target_modules": wanted.target_modules,
        "target_parameters": wanted.target_parameters,
        "calibration": {
            "executor": wanted.executor, "dtype": wanted.dtype, "batch_size": wanted.batch_size,
            "estimator": "exact",
        },
        "allocation": {"r_min": R_MIN, "r_max": R_MAX},
        "adapter": {"weights": True},
    })  # fmt: skip
    digests = FolderDigests()
    model = {"source": "local", "name": checkpoint.name, "digest": digests.of_model(checkpoint)}
    accepted = AcceptedJob(
        request,
        {"base_model": model, "dataset": {"source": "inline", "digest": "sha256:rows"}},
        memory_kills=("resident 2",) if wanted.one_at_a_time else (),
    )
    process: Any = WorkerProcess(
        settings=settings, redis=None, store=None, transport=None, artifacts=None,
        models=ModelCache(limit_bytes=0), digests=digests,
    )  # fmt: skip
    work = Path(tempfile.mkdtemp(dir=out))
    reporter = _reporter(work.name)
    plan = calibrate(accepted, process=process, reporter=reporter, folder=work).plan
    folder = work / "adapter"
    return Product(Statistics.load(folder / "statistics.safetensors"), plan, folder)


def _rows(family: Family) -> list[dict[str, Any]]:
    return media_dataset(family) if family.kind == "media" else dataset(family)


class _NoRecord:
    """Stands where the records of jobs are; nobody looks at this one's."""

    def report(self, job_id: str, attempt: int, progress: Any) -> JobStatus:
        """Go on."""
        return JobStatus.RUNNING

    def note_memory(self, job_id: str, attempt: int, asked: str) -> JobStatus:
        """Go on."""
        return JobStatus.RUNNING


def _reporter(job_id: str) -> Reporter:
    store: Any = _NoRecord()
    return Reporter(
        store, job_id, 1, is_draining=lambda: False, on_alive=lambda: None, deadline_s=math.inf
    )


def _run_library(family: Family, checkpoint: Path, wanted: Wanted, out: Path) -> Product:
    settings = Settings(
        target_modules=wanted.target_modules,
        target_parameters=wanted.target_parameters,
        estimator="exact",  # what autograd is compared with
        micro_batch_size=1 if wanted.one_at_a_time else None,
    )
    options = {"model_class": family.model_class, "dtype": getattr(torch, wanted.dtype)}
    statistics = measure_folder(
        checkpoint,
        batches(examples(family), size=wanted.batch_size),
        settings,
        executor=wanted.executor,
        **options,
    )
    plan = allocate(score(statistics), MEAN_RANK, r_min=R_MIN, r_max=R_MAX)
    folder = Path(tempfile.mkdtemp(dir=out)) / "adapter"
    write_adapter(
        plan,
        folder,
        base_model=str(checkpoint),
        task_type="SEQ_2_SEQ_LM" if family.kind == "seq2seq_lm" else "CAUSAL_LM",
        weights=True,
        module_names=[
            name for name, _ in build_skeleton(checkpoint, **options).named_modules()
        ],
    )
    return Product(statistics, load_plan(folder), folder)
