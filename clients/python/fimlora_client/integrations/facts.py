"""What a job has found, as trackers take it: values to compare runs by, tables, files."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fimlora_client.blocking.client import Client
from fimlora_client.errors import ClientError, JobNotFinished, failure_of, problem_of
from fimlora_contract.artifacts import Artifact
from fimlora_contract.jobs import CalibrationResult, Job, JobStatus
from fimlora_contract.verdicts import EvaluationResult

# As large as the model's statistics are: trackers are no place for them.
NOT_SENT = frozenset({"statistics.safetensors", "adapter_model.safetensors"})
Row = Sequence[Any]


class NothingToLog(ClientError, ValueError):
    """A job has found nothing that a tracker is told."""

    code = "nothing_to_log"
    next_step = "`fimlora jobs` lists calibrations and evaluations."


@dataclass(frozen=True, slots=True)
class Facts:
    """What a tracker is told of a job.

    Attributes:
        job_id: The job.
        kind: ``plan`` or ``evaluation``.
        digest: Content address of the result.
        settings: What was asked for and decided, in short.
        figures: Numbers that runs are compared by.
        sentences: What it says of itself, by name.
        tables: Columns and rows, by name.
    """

    job_id: str
    kind: str
    digest: str
    settings: Mapping[str, str | int | float]
    figures: Mapping[str, float]
    sentences: Mapping[str, str]
    tables: Mapping[str, tuple[Sequence[str], Sequence[Row]]]


@contextmanager
def facts_and_files(client: Client, job_id: str) -> Iterator[tuple[Facts, list[Path]]]:
    """What a job has found, and the files it left, which are gone afterwards.

    Raises:
        JobNotFinished: It has not ended.
        JobFailed: It failed.
        JobCanceled: It was canceled.
        NothingToLog: It is neither a calibration nor an evaluation.
    """
    facts = facts_of(client.jobs.retrieve(job_id))
    with tempfile.TemporaryDirectory(prefix="fimlora-") as work:
        found = client.jobs.download(job_id, Path(work) / facts.kind, only=is_sent)
        yield facts, [found[name] for name in sorted(found)]


def is_sent(file: Artifact) -> bool:
    """Whether a file of a result goes to a tracker."""
    return file.name not in NOT_SENT


def facts_of(job: Job) -> Facts:
    """What a job that has ended says; see `facts_and_files` for what it raises."""
    if not job.status.is_final:
        raise JobNotFinished(problem_of("job_not_finished", f"job {job.id} is {job.status}"))
    if job.status is not JobStatus.SUCCEEDED:
        raise failure_of(job)
    if isinstance(job.result, CalibrationResult):
        return _of_plan(job, job.result)
    if isinstance(job.result, EvaluationResult):
        return _of_evaluation(job, job.result)
    raise NothingToLog(f"{job.id} is a {job.kind}, of which there is nothing to log")


def _of_plan(job: Job, result: CalibrationResult) -> Facts:
    rank_map = result.rank_map
    sure, signal = rank_map.confidence, rank_map.signal
    unit = str(rank_map.budget.get("unit"))
    figures: dict[str, float | None] = {
        "ranks": rank_map.spent["ranks"],
        "parameters": rank_map.spent["parameters"],
        "modules": len(rank_map.modules),
        "expected_overlap": sure.expected_overlap if sure else None,
        "unresolved": sure.n_unresolved if sure else None,
        "moved_by_labels": signal.moved_by_labels if signal else None,
        "moved_by_rows": signal.moved_by_rows if signal else None,
    }
    said = {"signal": signal.sentence} if signal else {}
    said |= {f"warning {warning.code}": warning.message for warning in rank_map.warnings}
    columns = ["module", "layer", "type", "rank", "alpha", "score", "parameters"]
    rows: list[list[Any]] = [
        [m.name, m.layer, m.kind, m.rank, m.alpha, m.score, m.parameters]
        for m in rank_map.modules
    ]
    if sure:
        columns += ["lowest_rank", "highest_rank", "standard_error"]
        ends = (sure.lowest_ranks, sure.highest_ranks, sure.standard_errors)
        rows = [[*row, *more] for row, more in zip(rows, zip(*ends, strict=True), strict=True)]
    return Facts(
        job_id=job.id,
        kind="plan",
        digest=result.digest,
        settings=_inputs(job)
        | {
            "method": rank_map.method or rank_map.rule,
            f"budget_{unit}": rank_map.budget.get("value", 0),
            "r_min": rank_map.r_min,
            "r_max": rank_map.r_max,
            "scale": rank_map.scale,
        }
        | ({"signal": signal.verdict} if signal else {}),
        figures=_known(figures),
        sentences=said,
        tables={"plan": (columns, rows)},
    )


def _of_evaluation(job: Job, result: EvaluationResult) -> Facts:
    figures: dict[str, float | None] = {"runs": result.n_runs, "seconds": result.seconds}
    for arm in result.arms:
        figures |= {f"{arm.name}/{name}": m.mean for name, m in arm.metrics.items()}
        figures[f"{arm.name}/best_rate"] = arm.best_rate
    arms = [
        [arm.name, name, spread.mean, spread.spread, arm.best_rate, *arm.adapter_parameters]
        for arm in result.arms
        for name, spread in arm.metrics.items()
    ]
    differences = [
        [d.arm, d.reference, d.metric, d.mean, d.low, d.high, d.p_holm, d.n_better, d.n]
        for d in result.differences
    ]
    said = {"verdict": result.verdict.sentence, "levers": result.levers.sentence}
    said |= {f"note {n}": note for n, note in enumerate(result.verdict.notes, 1)}
    of_arms = ["arm", "metric", "mean", "spread", "best_rate", "least_parameters", "parameters"]
    of_differences = [
        "arm",
        "reference",
        "metric",
        "mean",
        "low",
        "high",
        "p_holm",
        "better",
        "pairs",
    ]
    return Facts(
        job_id=job.id,
        kind="evaluation",
        digest=result.digest,
        settings=_inputs(job)
        | {"verdict": result.verdict.code, "winner": result.verdict.winner},
        figures=_known(figures),
        sentences=said,
        tables={"arms": (of_arms, arms), "differences": (of_differences, differences)},
    )


def _inputs(job: Job) -> dict[str, str | int | float]:
    named = {"base_model": job.request.get("base_model"), "dataset": job.request.get("dataset")}
    found = {
        role: (ref or {}).get("id") or (ref or {}).get("name") for role, ref in named.items()
    }
    return {"job": job.id, **{role: str(name) for role, name in found.items() if name}}


def _known(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if value is not None}
