"""What every worker makes of an evaluation by itself: rows on both sides, settings, the task.

An attempt and the hands that help it do this alike, so that whoever trains a run trains the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fimlora import RankPlan
from fimlora_contract.evaluations import EVAL_SHARE, EvaluationRequest
from fimlora_jobs.datasets.columns import NO_MEDIA_IN_EVALUATIONS, check_same
from fimlora_jobs.datasets.table import Rows
from fimlora_jobs.record import JobRecord
from fimlora_worker.errors import DatasetSchema
from fimlora_worker.evaluation.arms import Arm
from fimlora_worker.evaluation.settings import FIRST_TUNING_SEED, RATES, EvaluationSettings
from fimlora_worker.evaluation.split import Split, hold_out
from fimlora_worker.evaluation.task import Task, task_for
from fimlora_worker.inputs.media.kinds import kinds_shown
from fimlora_worker.inputs.rows import open_rows
from fimlora_worker.job.preparation import columns_of, fetch, find_base, find_columns
from fimlora_worker.job.progress import Reporter
from fimlora_worker.job.worker_process import WorkerProcess


@dataclass(frozen=True)
class Ground:
    """An evaluation, as far as it does not depend on plans.

    Attributes:
        request: What was asked for.
        resolved: What its references resolved to.
        folder: Of the base model.
        rows: The dataset.
        own: The rows to test on, if they are not a share of these.
        split: Rows on both sides; whatever learns is given its training rows only.
        settings: What is trained.
    """

    request: EvaluationRequest
    resolved: dict[str, Any]
    folder: Path
    rows: Rows
    own: Rows | None
    split: Split
    settings: EvaluationSettings


def open_ground(record: JobRecord, process: WorkerProcess, reporter: Reporter) -> Ground:
    """Fetch model and rows, and hold rows out before anything looks at one."""
    request = EvaluationRequest.model_validate(record.request)
    resolved, task = record.resolved, request.calibration.task
    folder, rows = fetch(request, resolved, process=process, reporter=reporter)
    fields = find_columns(request, resolved, rows)
    own = None
    if request.held_out is not None:
        known = resolved["held_out"]
        own = open_rows(
            request.held_out,
            known,
            process.settings,
            process.digests,
            alive=reporter.keep_alive,
        )
        check_same(fields, columns_of(request.held_out, known, own, task))
    for shown in filter(None, (rows, own)):  # before anything is measured
        if kinds_shown(shown, fields):
            raise DatasetSchema(NO_MEDIA_IN_EVALUATIONS)
    settings = settings_of(request, fields.task)
    split = hold_out(rows, fields, settings, own=own, task=task)
    return Ground(request, resolved, folder, rows, own, split, settings)


def settings_of(request: EvaluationRequest, task: str) -> EvaluationSettings:
    """What a request trains.

    Args:
        request: The request.
        task: ``sequence_classification`` or ``causal_lm``; it decides the grid by default.
    """
    schedule = request.schedule
    rates = request.learning_rates or RATES[task][-schedule.n_rates :]
    first = FIRST_TUNING_SEED
    return EvaluationSettings(
        arms=request.arms,
        learning_rates=tuple(rates),
        seeds=tuple(range(schedule.n_seeds)),
        tuning_seeds=tuple(range(first, first + schedule.n_tuning_seeds)),
        n_steps=schedule.n_steps,
        batch_size=request.batch_size,
        max_length=request.max_length,
        n_held_out=schedule.n_eval_rows,
        held_out_share=request.eval_share or EVAL_SHARE,
        n_points=schedule.n_points,
    )


def open_task(
    ground: Ground,
    plans: Mapping[str, list[Any]],
    process: WorkerProcess,
    reporter: Reporter,
) -> Task:
    """Make the examples, and see that the arms can be compared.

    Args:
        ground: The evaluation.
        plans: Rank maps of each arm, by its name.
        process: Caches and settings of this process.
        reporter: Told that it goes on; ends the attempt by raising.
    """
    request = ground.request
    base = find_base(
        request,
        ground.resolved,
        folder=ground.folder,
        rows=ground.split.train,
        process=process,
    )
    if base.processor is not None:
        raise DatasetSchema(NO_MEDIA_IN_EVALUATIONS)
    with base.encoder(ground.settings.max_length, request.calibration.chat_labels) as encoder:
        return task_for(
            ground.settings,
            read_arms(plans),
            base.model,
            ground.rows,
            ground.own,
            encoder,
            task=request.calibration.task,
            alive=reporter.keep_alive,
        )


def read_arms(plans: Mapping[str, list[Any]]) -> dict[str, Arm]:
    """The arms that rank maps stand for."""
    return {
        name: Arm(name, tuple(RankPlan.from_json(rank_map) for rank_map in maps))
        for name, maps in plans.items()
    }
