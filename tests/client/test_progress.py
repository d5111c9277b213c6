"""Progress on a terminal and in a log: what is said, how often, and without which characters."""

import io
import re

import pytest
from rich.console import Console

from fimlora_client.cli.common.progress import JobProgress
from fimlora_contract.jobs import Job
from support.scripted_service import job_as_json, scripted_service
from support.terminal import CommandLine

ID = f"job_{'0' * 23}"
MOVES, COLOURS = "\x1b[?25l", "\x1b["


def job(stage, **progress):
    return Job.model_validate(job_as_json(ID, "running", progress={"stage": stage} | progress))


class Log:
    """What `JobProgress` writes into a file, on a clock that a test moves."""

    def __init__(self):
        self.now, self._file = 0.0, io.StringIO()
        console = Console(file=self._file, width=80)
        self.show = JobProgress(console, clock=lambda: self.now)

    @property
    def lines(self):
        return self._file.getvalue().splitlines()


def test_a_log_has_a_line_per_stage(request):
    """Whatever is said of a stage again is said once."""
    log = Log()

    for stage in ("loading", "loading", "calibrating", "calibrating", "writing"):
        log.show(job(stage))

    assert log.lines == [f"{ID}  {stage}" for stage in ("loading", "calibrating", "writing")]


def test_shards_are_told_beside_the_batches():
    """How many are done, and how many are at work."""
    log = Log()

    shards = {"done": 1, "n_shards": 4, "at_once": 3}
    log.show(job("calibrating", batch=20, n_batches=64, shards=shards))

    assert log.lines == [f"{ID}  calibrating, batch 20/64, 1 of 4 shards done, 3 at work"]


def test_an_evaluation_of_hours_leaves_few_lines():
    """27 runs of 64 steps, reported every 3 s for 90 minutes: a line a minute at most."""
    log, n_reports = Log(), 1800

    for n in range(n_reports):
        done, within = divmod(n * 27 / n_reports, 1)
        runs = {"done": int(done), "n_runs": 27, "arm": "uniform", "step": int(within * 64)}
        left = {"seconds_left": 3.0 * (n_reports - n)}
        log.show(job("training", runs=runs | {"n_steps": 64}, **left))
        log.now += 3.0

    assert 10 <= len(log.lines) <= 91
    assert len(set(log.lines)) == len(log.lines)
    assert log.lines[0] == f"{ID}  training, run 0/27 uniform, 1 h 30 min left"
    assert max(map(len, log.lines)) <= 80


def test_a_fast_job_is_no_flood():
    """A thousand batches in five seconds are one line; ten seconds and a tenth on, another."""
    log = Log()

    for batch in range(1000):
        log.show(job("calibrating", batch=batch, n_batches=1000))
        log.now += 0.005
    log.now = 10.0
    log.show(job("calibrating", batch=1000, n_batches=1000))

    assert log.lines == [
        f"{ID}  calibrating, batch 0/1000", f"{ID}  calibrating, batch 1000/1000"
    ]  # fmt: skip


def test_what_a_job_waits_for_is_said():
    """A job that stands still is not silent about it."""
    log = Log()

    log.show(job("committing", waiting_for="the disk is full"))

    assert log.lines == [f"{ID}  waiting for storage: the disk is full"]


@pytest.fixture
def service():
    """A job that runs for some looks, and succeeds."""
    with scripted_service() as service:
        running = [
            job_as_json(
                ID, "running",
                progress={"stage": "calibrating", "batch": n, "n_batches": 8, "seconds_left": 9.0},
            )
            for n in range(6)
        ]  # fmt: skip
        ended = job_as_json(
            ID, "succeeded", started_at=0, finished_at=2,
            progress={"stage": "committing"},
        )  # fmt: skip
        service.answers[f"/jobs/{ID}"] = [*running, ended]
        yield service


@pytest.mark.parametrize(
    ("on_terminal", "environment"),
    [
        (False, {}),
        (False, {"FORCE_COLOR": "1", "CI": "true"}),
        (True, {"CI": "true"}),
        (True, {"NO_COLOR": "1"}),
        (True, {"TERM": "dumb"}),
    ],
    ids=["pipe", "pipe of a CI with colours", "CI", "NO_COLOR", "dumb"],
)
def test_a_log_holds_no_control_characters(service, on_terminal, environment):
    """Each is a reason by itself, and a real process on a real terminal is asked."""
    watch = CommandLine(
        "watch",
        ID,
        on_terminal=on_terminal,
        environment={"FIMLORA_URL": service.url} | environment,
    )

    assert watch.end() == 0, watch.output
    plain = watch.output.replace("\r\n", "\n")
    assert plain == (f"{ID}  calibrating, batch 0/8, 9 s left\n✓ {ID} succeeded in 2.0 s\n")


def test_a_terminal_has_a_moving_line(service):
    """It fits eighty columns, and is gone when the job has ended."""
    watch = CommandLine("watch", ID, on_terminal=True, environment={"FIMLORA_URL": service.url})

    assert watch.end() == 0, watch.output
    assert MOVES in watch.output
    assert re.search(r"batch [0-5]/8", watch.output), watch.output
    assert "9 s left" in watch.output
    assert f"{ID} succeeded in 2.0 s" in watch.output


def test_several_bars_fit_a_terminal_of_eighty_columns(service):
    """With the whole id, which one copies, and the time that is left."""
    other = f"job_{'1' * 23}"
    runs = {"done": 3, "n_runs": 27, "arm": "spectral-denoised", "step": 3, "n_steps": 64}
    progress = {"stage": "training", "runs": runs, "seconds_left": 5400.0}
    service.answers[f"/jobs/{other}"] = [
        *[job_as_json(other, "running", progress=progress)] * 6, job_as_json(other, "succeeded"),
    ]  # fmt: skip

    watch = CommandLine(
        "watch", ID, other, on_terminal=True, environment={"FIMLORA_URL": service.url}
    )

    assert watch.end() == 0, watch.output
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", watch.output).replace("\r", "\n").split("\n")
    shown = [line for line in lines if other in line and "run 3/27" in line]
    assert any("1 h 30 min left" in line and "training" in line for line in shown), shown
    # What is printed when a bar goes away stands where the bar stood.
    assert max(len(line.partition("✓")[0]) for line in shown) <= 80
