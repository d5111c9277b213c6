"""``fimlora jobs`` and ``show``: where requests stand, and what became of them."""

from typing import Annotated, Any

import typer
from rich.text import Text

from fimlora_client.cli.common.console import (
    ago,
    duration,
    make_table,
    out,
    say,
    show_json,
    status_text,
)
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.inputs import pairs_of
from fimlora_client.cli.common.next_steps import step_after
from fimlora_client.cli.common.options import AsJson, JobId, Tenant
from fimlora_client.cli.common.progress import shards_text
from fimlora_client.cli.work.compare import experts_table, methods_table, pairs_table
from fimlora_client.cli.work.findings import runs_text, show_findings
from fimlora_client.rank_map import rank_map_table
from fimlora_contract.budgets import BUDGET_UNITS
from fimlora_contract.comparisons import ComparisonResult
from fimlora_contract.jobs import (
    CalibrationResult,
    EarlierAttempt,
    Execution,
    Job,
    JobKind,
    JobStatus,
)
from fimlora_contract.verdicts import EvaluationResult


def list_jobs(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, newest first.")] = 20,
    kind: Annotated[
        JobKind | None, typer.Option(help="Of this kind only.", show_default=False)
    ] = None,
    status: Annotated[
        list[JobStatus] | None,
        typer.Option(
            help="In this status only. Repeatable: in one of them.", show_default=False
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE: with this label only, as given to calibrate. Repeatable.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Of this base model only, by its name.", show_default=False),
    ] = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """List the newest jobs.

    [bold]Examples[/bold]

      fimlora jobs --limit 5
      fimlora jobs --status failed --label team=nlp --model minilm
    """
    labels = pairs_of("--label", "KEY=VALUE", label)
    page = client_of(ctx).jobs.list(
        limit=limit, kind=kind, status=status, labels=labels, model=model, tenant=tenant
    )
    if as_json:
        show_json([job.model_dump(mode="json", exclude={"result"}) for job in page.data])
        return
    if not page.data and (kind or status or label or model):
        say("no such jobs; all of them:  fimlora jobs")
        return
    if not page.data:
        say("no jobs yet; start one with  fimlora calibrate MODEL DATASET --budget 8")
        return
    names = ("job", "kind", "status", "model", "budget", "age", "took")
    table = make_table(*names, folds=("model",), gap=1)  # all of it in 80 columns
    for job in page.data:
        table.add_row(
            job.id,
            job.kind.value,
            status_text(job.status),
            reference(job.request.get("base_model")),
            budget(job.request.get("budget")),
            ago(job.created_at).removesuffix(" ago"),
            _took(job),
        )
    out().print(table)


def show(ctx: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job and, when it has succeeded, its rank map.

    [bold]Example[/bold]

      fimlora show job_... --json
    """
    job = client_of(ctx).jobs.retrieve(job_id)
    if as_json:
        show_json(job.model_dump(mode="json"))
        return
    console = out()
    console.print(_headline(job), soft_wrap=True)
    console.print(_inputs(job), soft_wrap=True)
    if read_as := (job.resolved.get("dataset") or {}).get("read_as"):
        console.print(Text(f"  rows read as {read_as}", "dim"), soft_wrap=True)
    for earlier in job.earlier_attempts:
        console.print(Text(f"  {_earlier(earlier)}", "dim"), soft_wrap=True)
    result = job.result
    if isinstance(result, CalibrationResult) and result.execution:
        console.print(Text(f"  {execution(result.execution)}", "dim"), soft_wrap=True)
    if job.error:
        console.print(Text(f"  {job.error.code}: {job.error.detail}", "red"), soft_wrap=True)
        say((f"  {step_after(job)}", "dim"))
    if isinstance(result, CalibrationResult):
        console.print(rank_map_table(result.rank_map))
    elif isinstance(result, EvaluationResult):
        show_findings(result)
    elif isinstance(result, ComparisonResult):
        console.print(methods_table(result.comparison))
        console.print()
        console.print(pairs_table(result.comparison))
        if result.comparison.experts:
            console.print()
            console.print(experts_table(result.comparison))


def reference(value: dict[str, Any] | None) -> str:
    """A model or dataset reference in its short form."""
    value = value or {}
    name = value.get("id") or value.get("name")
    if name is None:
        return f"{value.get('n_rows', '?')} inline rows"
    if value.get("source") == "upload":
        return f"{name[:11]}…"
    revision = value.get("revision", "main")
    return str(name) if revision == "main" else f"{name}@{revision}"


def budget(value: dict[str, Any] | None) -> str:
    """A budget in words."""
    unit = next((unit for unit in BUDGET_UNITS if (value or {}).get(unit) is not None), None)
    if unit is None or value is None:
        return ""
    match unit:
        case "rank":
            return f"rank {value[unit]}"
        case "fraction":
            return f"{100 * value[unit]:.10g} %"
        case _:
            return f"{value[unit]:,} {unit}"


def execution(done: Execution) -> str:
    """How a measurement was carried out, in words."""
    examples = (
        "1 example" if done.micro_batch_size == 1 else f"{done.micro_batch_size} examples"
    )
    words = f"measured {done.executor}, {examples} at a time"
    if done.n_shards > 1:
        words += f", in {done.n_shards} shards"
    if done.peak_memory_bytes is None:
        return words
    return f"{words}, peak memory {done.peak_memory_bytes / 2**30:.1f} GiB"


def _headline(job: Job) -> Text:
    line = Text.assemble((job.id, "bold"), "  ", status_text(job.status))
    if job.progress and job.status is JobStatus.RUNNING:
        progress = job.progress
        line.append(f"  {progress.stage}")
        if progress.runs:
            line.append(f", {runs_text(progress.runs)}")
        if progress.n_batches:
            line.append(f", batch {progress.batch} of {progress.n_batches}")
        if progress.shards:
            line.append(f", {shards_text(progress.shards)}")
        if progress.seconds_left is not None:
            line.append(f", {duration(progress.seconds_left)} left")
    if job.attempt > 1:
        line.append(f"  attempt {job.attempt}", "dim")
    return line


def _earlier(ended: EarlierAttempt) -> str:
    words = [f"attempt {ended.attempt} ended {ago(ended.ended_at)}: {ended.reason}"]
    if not ended.counted:
        words.append("not counted")
    if ended.detail:
        words.append(ended.detail)
    return ", ".join(words)


def _inputs(job: Job) -> Text:
    took = f"  took {_took(job)}" if _took(job) else ""
    parts = (
        reference(job.request.get("base_model")),
        reference(job.request.get("dataset")),
        budget(job.request.get("budget")),
    )
    return Text(f"  {'  ·  '.join(parts)}  ·  created {ago(job.created_at)}{took}", "dim")


def _took(job: Job) -> str:
    if not (job.started_at and job.finished_at):
        return ""
    seconds = (job.finished_at - job.started_at).total_seconds()
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
