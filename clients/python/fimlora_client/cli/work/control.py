"""``fimlora cancel``, ``retry`` and ``delete``: change what becomes of a job."""

import typer

from fimlora_client.cli.common.console import out, say
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.options import JobId
from fimlora_contract.jobs import JobStatus

GOES_ON = frozenset({JobStatus.QUEUED, JobStatus.RUNNING})


def cancel(ctx: typer.Context, job_id: JobId) -> None:
    """Cancel a queued job at once, ask a running one to stop.

    [bold]Example[/bold]

      fimlora cancel job_...
    """
    job = client_of(ctx).jobs.cancel(job_id)
    say(job.id, " is ", (job.status.value, "yellow"))
    if job.status in GOES_ON:
        others = (
            "another equal request" if job.requests == 1 else f"{job.requests} equal requests"
        )
        say((f"  it goes on for {others}; cancel once for each to stop it", "dim"))


def retry(ctx: typer.Context, job_id: JobId) -> None:
    """Queue a failed or canceled job once more.

    Prints the id of the new job.

    [bold]Example[/bold]

      fimlora retry job_...
    """
    job = client_of(ctx).jobs.retry(job_id)
    out().print(job.id)
    say(("  look at it with  ", "dim"), f"fimlora show {job.id}")


def delete(ctx: typer.Context, job_id: JobId) -> None:
    """Forget a job that has ended.

    A result that is pinned or shared stays.

    [bold]Example[/bold]

      fimlora delete job_...
    """
    client_of(ctx).jobs.delete(job_id)
    say(job_id, " is forgotten")
