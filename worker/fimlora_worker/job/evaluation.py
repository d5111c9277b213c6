"""An evaluation: the story of one attempt.

The attempt leads: it makes the plans, takes runs like any hand, asks other workers for hands, and
judges when nothing is left. Whatever is finished is on record, so that an attempt costs no more
than the run it was in, and can let others go first between two runs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fimlora_contract.evaluations import EvaluationRequest
from fimlora_contract.jobs import Stage
from fimlora_jobs.record import JobRecord
from fimlora_jobs.runs import Runs
from fimlora_jobs.step_times import note_step_seconds
from fimlora_jobs.workers import WorkerRegistry
from fimlora_worker.errors import MakesRoom
from fimlora_worker.evaluation.csv_files import curves_csv, runs_csv
from fimlora_worker.evaluation.data import EvaluationData
from fimlora_worker.evaluation.judgement import Judgement
from fimlora_worker.evaluation.runs import RunResult
from fimlora_worker.evaluation.task import Task
from fimlora_worker.evaluation.verdict import judge
from fimlora_worker.job.commit import commit_files
from fimlora_worker.job.evaluation_ground import Ground, open_ground, open_task
from fimlora_worker.job.evaluation_plans import make_plans
from fimlora_worker.job.evaluation_runs import RunTaker
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.reuse import sources
from fimlora_worker.job.worker_process import WorkerProcess

FINDINGS = "findings"
MOST_FAILED_HANDS = 3
FOUND = ("verdict", "arms", "differences", "levers", "n_runs", "seconds", "settings")


@dataclass(frozen=True)
class Prepared:
    """An evaluation that is ready to train.

    Attributes:
        ground: The evaluation.
        plans: Rank maps of each arm.
        task: What runs are trained on.
    """

    ground: Ground
    plans: Mapping[str, Any]
    task: Task

    @property
    def on(self) -> str:
        """Device and dtype that runs are trained on by this process."""
        wanted = self.task.model.request
        return f"{wanted.device} {wanted.dtype}"


def run(
    record: JobRecord, process: WorkerProcess, reporter: Reporter, folder: Path
) -> dict[str, Any]:
    """Carry out an evaluation that is on record, and answer what it found."""
    runs = Runs(process.store, record.id)
    prepared = prepare_evaluation(record, runs, process, reporter, folder=folder)
    runs = replace(runs, on=prepared.on)
    results = _train_all(record, prepared, runs, process, reporter, folder)
    reporter.enter(Stage.JUDGING)
    n_tested = len(prepared.task.data.held_out)
    judgement = judge(prepared.ground.settings, results, n_tested=n_tested)
    _note_speed(record, prepared, results, process)
    target = folder / FINDINGS
    target.mkdir()
    _write(judgement, results, prepared, target)
    found = judgement.to_json()
    return commit_files(target, process, reporter) | {
        **{name: found[name] for name in FOUND},
        "data": _facts(prepared.task.data),
    }


def prepare_evaluation(
    record: JobRecord,
    runs: Runs,
    process: WorkerProcess,
    reporter: Reporter,
    *,
    folder: Path | None = None,
) -> Prepared:
    """Make what runs are trained on, or find it where this process has made it before.

    Whoever leads says on what hardware. If an attempt before was on other hardware, its runs are
    trained anew: in one evaluation all are trained on the same.

    Args:
        record: The evaluation.
        runs: Its runs; plans that are on record are not made again.
        process: Caches and settings of this process.
        reporter: Told about every stage.
        folder: For what measuring keeps on disk; ``None`` for whoever finds the plans made.
    """

    def prepare() -> Prepared:
        ground = open_ground(record, process, reporter)
        plans = runs.prepared()
        if plans is None:
            assert folder
            plans = make_plans(record, ground, process, reporter, folder)
        return Prepared(ground, plans, open_task(ground, plans, process, reporter))

    found: Prepared = process.readers.get(("evaluation", record.id), size=1, load=prepare)
    if folder and runs.prepared_on() != found.on:
        runs.prepare(found.plans, on=found.on)
    return found


def _train_all(
    record: JobRecord,
    prepared: Prepared,
    runs: Runs,
    process: WorkerProcess,
    reporter: Reporter,
    folder: Path,
) -> list[RunResult]:
    """Train what nobody else does until every run is finished."""

    def ask_for_hands(n_free: int) -> None:
        if runs.failed_hands() < MOST_FAILED_HANDS:
            _ask_for_hands(record.id, n_free, prepared.task, process)

    taker = RunTaker(runs, prepared.ground.settings, reporter, ask_for_hands)
    while lacking := taker.lacking():
        if taker.n_taken and _should_make_room(record, process, reporter):
            raise MakesRoom(f"{record.id} lets others go first")
        spec = taker.claim(lacking)
        if spec is None:
            taker.wait(lacking)
        else:
            taker.take(spec, lacking, prepared.task, folder)
            if record.failures and taker.n_taken == 1:
                process.store.forgive(record.id, record.attempt)
    return list(taker.results.values())


def _ask_for_hands(job_id: str, n_free: int, task: Task, process: WorkerProcess) -> None:
    """Queue as many hands as there are runs for, and other workers of our kind to lend one.

    On another kind of device a run comes to other figures.
    """
    device = task.model.device.type
    others = sum(w.device == device for w in WorkerRegistry(process.store).living()) - 1
    wanted = min(n_free, others)
    if wanted > 0:
        for _ in range(wanted - process.transport.waiting_hands(job_id)):
            process.transport.enqueue_hand(job_id)


def _should_make_room(record: JobRecord, process: WorkerProcess, reporter: Reporter) -> bool:
    """Whether others of its rank or above wait, or this attempt will run out of time."""
    transport = process.transport
    others = transport.n_high() if record.is_urgent else len(transport.waiting())
    return reporter.has_used_half or others > 0


def _note_speed(
    record: JobRecord, prepared: Prepared, results: list[RunResult], process: WorkerProcess
) -> None:
    n_steps = sum(result.n_steps for result in results)
    if n_steps:
        note_step_seconds(
            process.store,
            EvaluationRequest.model_validate(record.request),
            model_digest=prepared.ground.resolved["base_model"]["digest"],
            seconds=sum(result.seconds for result in results) / n_steps,
        )


def _write(
    judgement: Judgement, results: list[RunResult], prepared: Prepared, folder: Path
) -> None:
    """Write raw results, and all of it as data; a report is drawn of it on request."""
    data = judgement.to_json()
    whole = data | {
        "data": _facts(prepared.task.data),
        "sources": sources(prepared.ground.resolved),
        "plans": prepared.plans,
    }
    texts = {
        "runs.csv": runs_csv(results),
        "curves.csv": curves_csv(results),
        "evaluation.json": json.dumps(whole, indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _facts(data: EvaluationData) -> dict[str, int]:
    """How many rows were on either side, and how many were left out for what reason."""
    return {
        "n_train": len(data.train),
        "n_held_out": len(data.held_out),
        "n_dropped": data.n_dropped,
        "n_equal_texts": data.n_equal_texts,
        "n_unknown_classes": data.n_unknown_classes,
    }
