"""``fimlora events``, ``webhooks`` and ``artifacts``: a job's history, and what it left."""

from collections.abc import Iterable
from typing import Annotated

import typer

from fimlora_client.blocking.jobs import Jobs
from fimlora_client.cli.common.console import make_table, out, print_plain, say, show_json, size
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.options import AsJson, JobId
from fimlora_contract.jobs import JobEvent


def events(
    ctx: typer.Context,
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Stay until the job has ended.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON per event.")
    ] = False,
) -> None:
    """Tell what has happened to a job, a line per event.

    [bold]Examples[/bold]

      fimlora events job_...
      fimlora events job_... --follow --json
    """
    jobs = client_of(ctx).jobs
    for event in jobs.events(job_id) if follow else _so_far(jobs, job_id):
        print_plain(event.model_dump_json() if as_json else _line(event))


def artifacts(ctx: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """List the files of a result.

    [bold]Example[/bold]

      fimlora artifacts job_...
    """
    files = client_of(ctx).jobs.artifacts(job_id).data
    if as_json:
        show_json([file.model_dump(mode="json") for file in files])
        return
    table = make_table("file", "size", "digest", right=("size",))
    for file in files:
        table.add_row(file.name, size(file.size), f"{file.digest[:19]}…")
    out().print(table)
    say(("  keep them with  ", "dim"), f"fimlora fetch {job_id} --output DIR")


def webhooks(ctx: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Tell who was told of a job's end by webhook, and with what outcome.

    [bold]Example[/bold]

      fimlora webhooks job_...
    """
    tries = client_of(ctx).jobs.webhooks(job_id)
    if as_json:
        show_json(tries.model_dump(mode="json"))
        return
    if tries.data:
        table = make_table("when", "receiver", "try", "outcome", "took", right=("try", "took"))
        for tried in tries.data:
            outcome = [tried.outcome, *filter(None, [str(tried.status or ""), tried.reason])]
            if tried.next_try_at:
                outcome.append(f"again at {tried.next_try_at:%H:%M:%S}")
            table.add_row(
                f"{tried.at:%Y-%m-%d %H:%M:%S}",
                tried.origin,
                str(tried.attempt),
                ", ".join(outcome),
                f"{tried.duration_s:.1f} s",
            )
        out().print(table)
    say(f"{len(tries.data)} tries, {tries.waiting} addresses still to be told")


def _so_far(jobs: Jobs, job_id: str) -> Iterable[JobEvent]:
    page = jobs.history(job_id)
    yield from page.data
    while page.next_cursor:
        page = jobs.history(job_id, after=page.next_cursor)
        yield from page.data


def _line(event: JobEvent) -> str:
    """One event as a person reads it."""
    words = [f"{event.at.astimezone():%Y-%m-%d %H:%M:%S}"] if event.at else []
    words += [event.id, event.status.value]
    if event.attempt > 1:
        words.append(f"attempt {event.attempt}")
    if event.reason:
        words.append(f"the attempt before ended: {event.reason}")
    if event.progress:
        words.append(event.progress.stage.value)
        if event.progress.n_batches:
            words.append(f"batch {event.progress.batch} of {event.progress.n_batches}")
    if event.error:
        words.append(f"{event.error.code}: {event.error.detail}")
    return "  ".join(words)
