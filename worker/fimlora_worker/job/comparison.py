"""Plans of several methods side by side, from one set of passes: the story of one attempt."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fimlora import Statistics, compare
from fimlora.confidence.compare import Comparison
from fimlora.confidence.compare_picture import render_comparison
from fimlora_contract.comparison_requests import ComparisonRequest
from fimlora_contract.jobs import Stage
from fimlora_jobs.record import JobRecord
from fimlora_jobs.results.store import STATISTICS
from fimlora_worker.job.calibration import AcceptedJob, measure
from fimlora_worker.job.commit import commit_files
from fimlora_worker.job.preparation import fetch, prepare
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.reuse import find_measured
from fimlora_worker.job.solving import budget_of
from fimlora_worker.job.worker_process import WorkerProcess

COMPARISON_FOLDER = "comparison"


def run(
    record: JobRecord, process: WorkerProcess, reporter: Reporter, folder: Path
) -> dict[str, Any]:
    """Carry out a comparison that is on record, and answer its result."""
    request = ComparisonRequest.model_validate(record.request)
    statistics = _statistics(request, record, process, reporter, folder)
    reporter.enter(Stage.ALLOCATING)
    found = compare(
        statistics,
        budget_of(request),
        methods=request.methods,
        **request.allocation.model_dump(exclude={"method"}),
    )
    reporter.enter(Stage.WRITING)
    target = folder / COMPARISON_FOLDER
    target.mkdir()
    _write(found, statistics, target)
    result = commit_files(target, process, reporter) | {"comparison": found.to_json()}
    # Beside the artefacts, not among them: they are the same however it was measured.
    execution = statistics.execution
    return result | {"execution": asdict(execution) if execution else None}


def _statistics(
    request: ComparisonRequest,
    record: JobRecord,
    process: WorkerProcess,
    reporter: Reporter,
    folder: Path,
) -> Statistics:
    """Those of an earlier job, or what is measured now."""
    if measured := find_measured(record, process):
        return measured.statistics
    model_folder, rows = fetch(request, record.resolved, process=process, reporter=reporter)
    reporter.enter(Stage.LOADING)
    prepared = prepare(
        request,
        record.resolved,
        folder=model_folder,
        rows=rows,
        process=process,
        on_example=reporter.keep_alive,
    )
    accepted = AcceptedJob(
        request, record.resolved, memory_kills=record.memory_kills, shares=True
    )
    statistics, _ = measure(accepted, prepared, process, reporter, folder)
    return statistics


def _write(found: Comparison, statistics: Statistics, folder: Path) -> None:
    text = json.dumps(found.to_json(), indent=2) + "\n"
    (folder / "compare.json").write_text(text)
    (folder / "compare.svg").write_text(render_comparison(found))
    statistics.save(folder / STATISTICS)
