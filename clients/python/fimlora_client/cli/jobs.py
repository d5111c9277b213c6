"""``fimlora jobs``, ``show``, ``cancel`` and ``fetch``: what became of a request."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from fimlora_client.cli.console import (
    ago,
    duration,
    make_table,
    out,
    say,
    show_json,
    status_text,
)
from fimlora_client.cli.context import client_of
from fimlora_client.errors import JobNotFinished, failure_of, problem_of
from fimlora_client.rank_map import rank_map_table
from fimlora_contract.jobs import Job, JobStatus
from fimlora_contract.requests import BUDGET_UNITS

JobId = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the job, job_...", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("jobs", rich_help_panel="Look")(list_jobs)
    app.command("show", rich_help_panel="Look")(show)
    app.command("fetch", rich_help_panel="Work")(fetch)
    app.command("cancel", rich_help_panel="Work")(cancel)


def list_jobs(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest jobs."""
    page = client_of(ctx).jobs.list(limit=limit)
    if as_json:
        show_json([job.model_dump(mode="json", exclude={"result"}) for job in page.data])
        return
    if not page.data:
        say("no jobs yet; start one with  fimlora calibrate MODEL DATASET --budget 8")
        return
    table = make_table("job", "status", "model", "budget", "created", "took")
    for job in page.data:
        table.add_row(
            job.id,
            status_text(job.status),
            reference(job.request.get("base_model")),
            budget(job.request.get("budget")),
            ago(job.created_at),
            _took(job),
        )
    out().print(table)


def show(ctx: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job and, when it has succeeded, its rank map."""
    job = client_of(ctx).jobs.retrieve(job_id)
    if as_json:
        show_json(job.model_dump(mode="json"))
        return
    console = out()
    console.print(_headline(job), soft_wrap=True)
    console.print(_inputs(job), soft_wrap=True)
    if job.error:
        console.print(Text(f"  {job.error.code}: {job.error.detail}", "red"), soft_wrap=True)
    if job.result:
        console.print(rank_map_table(job.result.rank_map))


def cancel(ctx: typer.Context, job_id: JobId) -> None:
    """Cancel a queued job at once, ask a running one to stop."""
    job = client_of(ctx).jobs.cancel(job_id)
    say(job.id, " is ", (job.status.value, "yellow"))


def fetch(
    ctx: typer.Context,
    job_id: JobId,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder to write into.", show_default=False),
    ],
) -> None:
    """Write the files of a succeeded job into a folder, each checked by its digest.

    Made for scripts: exits with 0 when all files are there, 3 when there is no such job, 4
    when it failed or was canceled, 5 when it has not ended yet.
    """
    client = client_of(ctx)
    job = client.jobs.retrieve(job_id)
    if not job.status.is_final:
        raise JobNotFinished(problem_of("job_not_finished", f"job {job.id} is {job.status}"))
    if job.status is not JobStatus.SUCCEEDED:
        raise failure_of(job)
    files = client.jobs.download(job_id, output)
    for name in sorted(files):
        out().print(Text(str(files[name])), soft_wrap=True)


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
    return f"rank {value[unit]}" if unit == "rank" else f"{value[unit]:,} {unit}"


def _headline(job: Job) -> Text:
    line = Text.assemble((job.id, "bold"), "  ", status_text(job.status))
    if job.progress and job.status is JobStatus.RUNNING:
        progress = job.progress
        line.append(f"  {progress.stage}")
        if progress.n_batches:
            line.append(f", batch {progress.batch} of {progress.n_batches}")
        if progress.seconds_left is not None:
            line.append(f", {duration(progress.seconds_left)} left")
    if job.attempt > 1:
        line.append(f"  attempt {job.attempt}", "dim")
    return line


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
