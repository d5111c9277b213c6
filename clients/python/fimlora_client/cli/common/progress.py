"""Show how far jobs are: live bars on a terminal, a few lines in logs and CI."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from fimlora_client.cli.common.console import INTERRUPTED, duration, say
from fimlora_contract.jobs import Job, JobStatus, ShardProgress
from fimlora_contract.jobs import Progress as JobProgressFigures

WIDE, NARROW = 32, 8  # beside an id, all else fits eighty columns with a narrow one
# A log gets a line for each stage; within a stage at most one per interval, and none before a
# tenth more is done, unless nothing has been said for long: who watches logs kills the silent.
INTERVAL_S, SILENCE_S, TENTH = 10.0, 60.0, 0.1


class JobProgress:
    """Call it with every job that a wait sees.

    Args:
        console: Where to show it.
        names_jobs: Whether bars say whose they are, as there may be several; lines always do.
        clock: Seconds, of which lines in a log have some between them.
    """

    def __init__(
        self,
        console: Console,
        *,
        names_jobs: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        is_live = console.is_terminal and console.file.isatty()
        self._shown = (
            _Bars(console, names_jobs=names_jobs) if is_live else _Lines(console, clock)
        )

    def __call__(self, job: Job) -> None:
        """Show where a job stands now; of one that has ended, whoever waited will tell."""
        if not job.status.is_final:
            self._shown.show(job)

    def end(self, job: Job) -> None:
        """Show no more of a job."""
        self._shown.end(job)

    def __enter__(self) -> Self:
        self._shown.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._shown.stop()


@contextmanager
def left_running(*job_ids: str) -> Iterator[None]:
    """Around a wait: Ctrl-C ends the waiting only, and one is told how to go on.

    Raises:
        Exit: One has stopped waiting.
    """
    try:
        yield
    except KeyboardInterrupt:
        goes_on = "the job goes on" if len(job_ids) == 1 else "the jobs go on"
        say((f"  {goes_on}; watch again with  ", "dim"), f"fimlora watch {' '.join(job_ids)}")
        say(("  or stop one with  ", "dim"), f"fimlora cancel {job_ids[0]}")
        raise typer.Exit(INTERRUPTED) from None


class _Bars:
    """A moving line per job; all are gone at the end."""

    def __init__(self, console: Console, *, names_jobs: bool) -> None:
        bar = BarColumn(
            NARROW if names_jobs else WIDE,
            style="dim", complete_style="cyan", finished_style="green",
        )  # fmt: skip
        named = [TextColumn("{task.fields[job]}")] if names_jobs else []
        self._bars = Progress(
            SpinnerColumn(style="cyan", finished_text="[green]✓[/]"),
            *named,
            TextColumn("{task.description:<11}"),
            bar,
            TextColumn("{task.fields[done]:<12}"),
            TextColumn("[dim]{task.fields[left]}"),
            console=console,
            transient=True,
            refresh_per_second=5,  # calm, and the worker may need the core
        )
        self._names_jobs = names_jobs
        self._tasks: dict[str, TaskID] = {}

    def start(self) -> None:
        self._bars.start()

    def show(self, job: Job) -> None:
        if job.id not in self._tasks:
            self._tasks[job.id] = self._bars.add_task(
                "", total=None, job=job.id, done="", left=""
            )
        seen = _Seen.of(job)
        self._bars.update(
            self._tasks[job.id],
            description=seen.stage,
            total=seen.total,
            completed=seen.done,
            done=seen.short if self._names_jobs else seen.words,
            left=seen.left,
        )

    def end(self, job: Job) -> None:
        if job.id in self._tasks:
            self._bars.remove_task(self._tasks.pop(job.id))

    def stop(self) -> None:
        self._bars.stop()


@dataclass(slots=True)
class _Said:
    """The last line about a job: when, of which stage, how far it was."""

    at: float
    stage: str
    share: float
    line: str


class _Lines:
    """Lines that are worth keeping; text alone, whatever the file is."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._said: dict[str, _Said] = {}

    def start(self) -> None:
        """Nothing moves."""

    def show(self, job: Job) -> None:
        seen, now = _Seen.of(job), self._clock()
        line = ", ".join(filter(None, (seen.stage, seen.words, seen.left)))
        if self._is_worth_it(self._said.get(job.id), seen, line, now):
            self._console.print(f"{job.id}  {line}", soft_wrap=True, markup=False)
            self._said[job.id] = _Said(now, seen.stage, seen.share, line)

    def end(self, job: Job) -> None:
        self._said.pop(job.id, None)

    def stop(self) -> None:
        """Nothing moves."""

    def _is_worth_it(self, said: _Said | None, seen: "_Seen", line: str, now: float) -> bool:
        if said is None or said.stage != seen.stage:
            return True
        since = now - said.at
        is_further = seen.share - said.share >= TENTH
        return line != said.line and since >= (INTERVAL_S if is_further else SILENCE_S)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A job as it is shown.

    Attributes:
        stage: What it is doing.
        done: How much is done.
        total: Of how much; ``None`` where nobody knows.
        words: The same in words.
        short: The same in few words.
        left: How long it will take, in words; empty where nobody knows.
    """

    stage: str
    done: float = 0.0
    total: float | None = None
    words: str = ""
    short: str = ""
    left: str = ""

    @classmethod
    def of(cls, job: Job) -> "_Seen":
        progress = job.progress if job.status is JobStatus.RUNNING else None
        if progress is None:
            return cls(stage_of(job))
        left = progress.seconds_left
        said = "" if left is None else f"{duration(left)} left"
        return cls(stage_of(job), *_measure(progress), left=said)

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 0.0


def _measure(progress: JobProgressFigures) -> tuple[float, float | None, str, str]:
    """How much is done, of how much, and the same in words and in few."""
    if runs := progress.runs:
        within = runs.step / runs.n_steps if runs.n_steps else 0.0
        arm = f" {runs.arm}" if runs.arm else ""
        short = f"run {runs.done}/{runs.n_runs}"
        return runs.done + within, runs.n_runs, f"{short}{arm}", short
    if not progress.n_batches:
        return 0.0, None, "", ""
    short = f"batch {progress.batch}/{progress.n_batches}"
    words = f"{short}, {shards_text(progress.shards)}" if progress.shards else short
    return progress.batch, progress.n_batches, words, short


def shards_text(shards: ShardProgress) -> str:
    """How far the shards of a calibration are, in words."""
    return f"{shards.done} of {shards.n_shards} shards done, {shards.at_once} at work"


def stage_of(job: Job) -> str:
    """What the job is doing, in a word."""
    if job.status is JobStatus.RUNNING and job.progress:
        if waiting_for := job.progress.waiting_for:
            return f"waiting for storage: {waiting_for}"
        return job.progress.stage.value
    return job.status.value
