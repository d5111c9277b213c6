"""Show how far a job is: a live bar on a terminal, a line per stage anywhere else."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from fimlora_client.cli.common.console import duration
from fimlora_contract.jobs import Job, JobStatus
from fimlora_contract.jobs import Progress as JobProgressFigures

BAR_WIDTH = 32


class JobProgress:
    """Call it with every job that a wait sees.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = ""
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(style="cyan", finished_text="[green]✓[/]"),
                TextColumn("{task.description:<12}"),
                BarColumn(
                    BAR_WIDTH, style="dim", complete_style="cyan", finished_style="green"
                ),
                TextColumn("{task.fields[batch]:<12}"),
                TextColumn("[dim]{task.fields[left]}"),
                console=console,
                transient=True,
                refresh_per_second=5,  # calm, and the worker may need the core
            )
            self._task = self._bar.add_task("queued", total=None, batch="", left="")

    def __call__(self, job: Job) -> None:
        """Show where the job stands now."""
        stage = stage_of(job)
        line = _line(job, stage)
        if self._bar:
            self._move(job, stage)
        elif line != self._shown:
            self._console.print(f"{job.id}  {line}", soft_wrap=True)
        self._shown = line

    def _move(self, job: Job, stage: str) -> None:
        assert self._bar
        progress = job.progress
        done, total, words = _measure(progress) if progress else (0.0, None, "")
        left = progress.seconds_left if progress else None
        self._bar.update(
            self._task,
            description=stage,
            total=total,
            completed=done,
            batch=words,
            left=f"{duration(left)} left" if left is not None else "",
        )

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()


def _line(job: Job, stage: str) -> str:
    """What is said where nothing can be drawn: each stage, and each run that is done."""
    runs = job.progress.runs if job.progress else None
    return f"{stage}, {runs.done} of {runs.n_runs} runs done" if runs else stage


def _measure(progress: JobProgressFigures) -> tuple[float, float | None, str]:
    """How much is done, of how much, and the same in words."""
    if runs := progress.runs:
        within = runs.step / runs.n_steps if runs.n_steps else 0.0
        arm = f" {runs.arm}" if runs.arm else ""
        return runs.done + within, runs.n_runs, f"run {runs.done}/{runs.n_runs}{arm}"
    if not progress.n_batches:
        return 0.0, None, ""
    total = progress.n_batches
    return progress.batch, total, f"batch {progress.batch}/{total}"


def stage_of(job: Job) -> str:
    """What the job is doing, in a word."""
    if job.status is JobStatus.RUNNING and job.progress:
        if waiting_for := job.progress.waiting_for:
            return f"waiting for storage: {waiting_for}"
        return job.progress.stage.value
    return job.status.value
