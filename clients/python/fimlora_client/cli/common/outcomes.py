"""How a job ended, in a line."""

from fimlora_client.cli.common.console import duration, say
from fimlora_contract.jobs import Job, JobStatus


def say_ended(job: Job) -> None:
    """Tell how a job ended, and why if it failed."""
    if job.status is JobStatus.SUCCEEDED:
        say(("✓ ", "green"), f"{job.id} succeeded{took(job)}")
    elif job.error:
        say(("✗ ", "red"), f"{job.id} failed: {job.error.code}: {job.error.detail}")
    else:
        say(("✗ ", "yellow"), f"{job.id} was {job.status.value}")


def took(job: Job) -> str:
    """How long a job took, as the end of a sentence; empty where nobody knows."""
    if not (job.started_at and job.finished_at):
        return ""
    seconds = (job.finished_at - job.started_at).total_seconds()
    return f" in {seconds:.1f} s" if seconds < 90 else f" in {duration(seconds)}"
