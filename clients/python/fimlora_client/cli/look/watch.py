"""``fimlora watch``: follow jobs to their end, one or many."""

from typing import Annotated

import typer

from fimlora_client.blocking.client import Client
from fimlora_client.cli.common import completion
from fimlora_client.cli.common.console import FAILED, NOT_FINISHED, OK, err, say
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.outcomes import say_ended
from fimlora_client.cli.common.progress import JobProgress, left_running
from fimlora_client.errors import ConnectionFailed
from fimlora_contract.jobs import JobStatus

PAGE = 100
OPEN = [status for status in JobStatus if not status.is_final]


def watch(
    ctx: typer.Context,
    job_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[JOB]...",
            help="Ids of jobs; all that are open if left out.",
            show_default=False,
            autocompletion=completion.job_ids,
        ),
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds to wait for a service that is away, once it has answered."
        ),
    ] = 300,
) -> None:
    """Follow jobs until all have ended: live bars on a terminal, a few lines in a log.

    A service that restarts is waited for. Ctrl-C leaves the jobs running.

    Exit codes: 0 all succeeded, 3 not found, 4 one failed or was canceled, 5 the
    service has been away for too long.

    [bold]Examples[/bold]

      fimlora watch
      fimlora watch job_... job_... && sbatch train.sh
    """  # fmt: skip
    client = client_of(ctx)
    ids = list(dict.fromkeys(job_ids or _open(client)))
    if not ids:
        say("no job is open; `fimlora jobs` lists those that have ended")
        return
    with left_running(*ids):
        raise typer.Exit(_follow(client, ids, patience))


def _follow(client: Client, ids: list[str], patience: float) -> int:
    """What the jobs came to, as an exit code."""
    code, left = OK, list(ids)
    is_away = False

    def say_away(_error: ConnectionFailed) -> None:
        nonlocal is_away
        if not is_away:
            say(("  the service is away; trying again", "dim"))
        is_away = True

    with JobProgress(err(), names_jobs=len(ids) > 1) as progress:
        try:
            for job in client.jobs.watch(*ids, patience=patience, on_away=say_away):
                is_away = False
                progress(job)
                if job.status.is_final:
                    progress.end(job)
                    say_ended(job)
                    left.remove(job.id)
                    code = code if job.status is JobStatus.SUCCEEDED else FAILED
        except ConnectionFailed as error:
            if len(left) == len(ids) and not is_away:
                raise  # it has never answered
            say(("  gave up: ", "yellow"), str(error))
            say((f"  {len(left)} jobs not seen to end; go on with  ", "dim"),
                f"fimlora watch {' '.join(left)}")  # fmt: skip
            return NOT_FINISHED
    return code


def _open(client: Client) -> list[str]:
    """Ids of all jobs that have not ended, the oldest first."""
    page = client.jobs.list(limit=PAGE, status=OPEN)
    found = page.data
    while page.next_cursor:
        page = client.jobs.list(limit=PAGE, status=OPEN, cursor=page.next_cursor)
        found += page.data
    # One that has ended since the service looked is not waited for.
    return [job.id for job in reversed(found) if not job.status.is_final]
