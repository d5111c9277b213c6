"""Statistics that an earlier job has measured, and an adapter planned from them anew.

The service finds the earlier job, this process writes: results have one writer, so a plan
that cost no measurement is committed, retried and canceled like any other.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fimlora import RankPlan, Statistics, write_adapter
from fimlora.adapter.write import CLASSIFIER_TASKS
from fimlora.errors import InvalidStatistics
from fimlora.replan import WrittenAdapter, replan
from fimlora_contract.jobs import Stage
from fimlora_contract.requests import CalibrationRequest
from fimlora_jobs.reader import JobMissing
from fimlora_jobs.record import JobRecord
from fimlora_jobs.results.store import STATISTICS
from fimlora_worker.inputs.base_model import BaseModel
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.solving import budget_of
from fimlora_worker.job.worker_process import WorkerProcess

log = logging.getLogger(__name__)
# What the service has seen of a dataset, which is not where it comes from.
_SEEN = {"fields", "rows", "chat", "media", "read_as"}


@dataclass(frozen=True)
class Measured:
    """What an earlier job has measured.

    Attributes:
        statistics: Its statistics, under the scale that is asked for now.
        written: The adapter it wrote.
    """

    statistics: Statistics
    written: WrittenAdapter

    @property
    def rounds(self) -> dict[str, Any]:
        """How the number of batches came about then, where it was not asked for."""
        facts = self.written.rank_map["provenance"]
        return {key: facts[key] for key in ("n_batches_by",) if key in facts}

    def suffices_for(self, request: CalibrationRequest) -> bool:
        """Whether the model is not needed: weights hold what is trained whole, as a head is."""
        has_whole = request.modules_to_save or (
            self.written.config["task_type"] in CLASSIFIER_TASKS
        )
        return not (request.adapter.weights and has_whole)


def find_measured(record: JobRecord, process: WorkerProcess) -> Measured | None:
    """The statistics that a job was accepted with; ``None`` when it must measure itself."""
    earlier = record.fields.get("statistics_from")
    if not earlier:
        return None
    try:
        return _load(process, earlier, record)
    except (JobMissing, InvalidStatistics, LookupError) as error:
        log.warning("statistics.gone", extra={"kept_by": earlier, "error": str(error)})
        process.store.measure_anew(record.id, record.attempt)
        return None


def _load(process: WorkerProcess, earlier: str, record: JobRecord) -> Measured:
    result: dict[str, Any] | None = process.store.get(earlier).json_field("result")
    if result is None:
        raise LookupError(f"job {earlier!r} has no result")
    statistics = Statistics.load(process.artifacts.local(result["digest"], STATISTICS))
    # Equal content may go by another name now, and the adapter is to bear that one.
    facts = result["rank_map"]["provenance"] | sources(record.resolved)
    written = WrittenAdapter(
        result["rank_map"] | {"provenance": facts},
        result["adapter_config"] | {"base_model_name_or_path": model_name(record.resolved)},
    )
    return Measured(statistics.rescaled(record.request["adapter"]["scale"]), written)


def model_name(resolved: Mapping[str, Any]) -> str | None:
    """What adapter configs call the base model; never the name it is registered under."""
    reference = resolved["base_model"]
    name = reference.get("id") or reference.get("called")
    return str(name) if name else None


def sources(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan says of where its model and its rows came from."""
    return {
        "base_model": resolved["base_model"],
        **{
            role: {k: v for k, v in resolved[role].items() if k not in _SEEN}
            for role in ("dataset", "retain", "adapter")
            if role in resolved
        },
    }


def write_again(
    request: CalibrationRequest,
    measured: Measured,
    reporter: Reporter,
    *,
    folder: Path,
    model: BaseModel | None,
) -> RankPlan:
    """Plan and write an adapter without the weights of its model.

    Args:
        request: What is asked for now.
        measured: What the earlier job has measured and written.
        reporter: Told about every stage.
        folder: The adapter to be.
        model: The model, which the adapter is proved on; ``None`` where its files are gone.
    """
    reporter.enter(Stage.ALLOCATING)
    adapter, written, statistics = request.adapter, measured.written, measured.statistics
    plan = replan(
        statistics,
        written,
        budget_of(request),
        **adapter.scaling,
        **request.allocation.model_dump(),
    )
    reporter.enter(Stage.WRITING)
    write_adapter(
        plan,
        folder,
        base_model=written.config["base_model_name_or_path"],
        task_type=written.config["task_type"],
        layout=adapter.layout,
        weights=adapter.weights,
        init=adapter.initial,
        statistics=statistics,
        seed=request.calibration.seed,
        target_modules=None if model else written.target_modules(plan),
        modules_to_save=written.config.get("modules_to_save"),
        model=model and model.outline(),
        other_model=model and model.other_skeleton(),
    )
    statistics.save(folder / STATISTICS)
    return plan
