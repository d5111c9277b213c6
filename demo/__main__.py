"""``make demo``: calibrate a real pretrained model through the whole service.

Starts the embedded stack, registers MiniLM, builds a dataset from Python's own docstrings,
calibrates through the Python client, shows the rank map, loads the adapter with stock PEFT
and trains it; then does so once more with the same ranks and EVA's A. Ends with how much of the
plan follows from the task, and with status 0 only if all of that happened and everything is stopped.
"""

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from demo.base_model import find_minilm
from demo.docstrings import Row, build_rows, write_jsonl
from demo.errors import DemoFailed
from demo.stack import running_stack
from demo.training import N_STEPS, check, train
from fimlora_client import Client, ClientError, JobHandle, Result
from fimlora_client.cli.common.folders import link
from fimlora_client.cli.common.progress import JobProgress
from fimlora_client.head_line import head_line
from fimlora_client.rank_map import rank_map_table

DATA_DIR = Path(".fimlora/demo")
OUTPUT = Path("demo-output")
MODEL = "minilm"
MEAN_RANK = 8
MIN_CLASSES, MIN_ROWS = 8, 1_500
FILES = ("adapter_config.json", "rank_map.json", "rank_map.svg")
WEIGHTS = "adapter_model.safetensors"
EVA_FOLDER = "eva"


class Story:
    """Tells what happens and how long each step took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A titled step of the demonstration."""
        self.console.print(Text(f"\n{title}", "bold"))
        started = time.monotonic()
        yield
        self.seconds[title] = time.monotonic() - started

    def tell(self, text: str, style: str = "") -> None:
        """A line below the title."""
        self.console.print(Padding(Text(text, style), (0, 0, 0, 2), expand=False))

    def summary(self) -> str:
        """How long each step took, and all together."""
        parts = [f"{title.lower()} {taken:.1f} s" for title, taken in self.seconds.items()]
        return f"{', '.join(parts)}; {sum(self.seconds.values()):.1f} s in all"


def main() -> int:
    """Run the demonstration; the exit status says whether all of it happened."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that all is stopped
    story = Story(Console(highlight=False))
    try:
        tell(story)
    except (DemoFailed, ClientError) as error:
        story.console.print(Text(f"\nThe demonstration failed: {error}", "red"), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        story.console.print("\nStopped.")
        return 130
    story.console.print(Text(f"\nDone: {story.summary()}.", "green"), soft_wrap=True)
    return 0


def tell(story: Story) -> None:
    """The whole story, in order."""
    model_folder = find_minilm()
    DATA_DIR.mkdir(parents=True, exist_ok=True)
    with story.step("Dataset"):
        rows = build_dataset(story)
    with ExitStack() as stack:
        with story.step("Start"):
            running = stack.enter_context(running_stack(DATA_DIR.absolute()))
            story.tell(f"fimlora up: embedded Valkey, API at {running.url}, one warm worker")
            story.tell(f"state in {DATA_DIR}, logs in {DATA_DIR / 'logs'}", "dim")
        client = stack.enter_context(Client(running.url))
        with story.step("Calibrate"):
            result, dataset = calibrate(story, client, model_folder)
        story.console.print(rank_map_table(result.rank_map))
        with story.step("Train"):
            train_adapter(story, model_folder, OUTPUT, result, rows)
        with story.step("EVA's A"):
            begin_with_eva(story, client, dataset, model_folder, result, rows)
        with story.step("Stop"):
            stack.close()
            story.tell("API, worker and Valkey have ended")
    with story.step("Signal"):
        state_signal(story, result)


def build_dataset(story: Story) -> list[Row]:
    """Build the rows and check that they are worth calibrating on."""
    rows = build_rows()
    classes = sorted({row["label"] for row in rows})
    story.tell(f"{len(rows):,} docstrings of the standard library, {len(classes)} classes:")
    story.tell(", ".join(classes), "dim")
    if len(classes) < MIN_CLASSES or len(rows) < MIN_ROWS:
        raise DemoFailed(
            f"expected at least {MIN_ROWS} rows in {MIN_CLASSES} classes; is the source of "
            "the standard library installed?"
        )
    write_jsonl(rows, DATA_DIR / "docstrings.jsonl")
    return rows


def calibrate(story: Story, client: Client, model_folder: Path) -> tuple[Result, str]:
    """Register the model, upload the rows, ask for a plan, wait, write it to a folder.

    Returns:
        The result, and the id of the uploaded rows.
    """
    link(DATA_DIR.absolute() / "models", MODEL, model_folder)
    dataset = client.datasets.upload(DATA_DIR / "docstrings.jsonl")
    story.tell(f"{MODEL} registered, {dataset.rows:,} rows uploaded as {dataset.id}")
    return ask(story, client, dataset.id, OUTPUT, FILES), dataset.id


def ask(
    story: Story, client: Client, dataset: str, folder: Path, files: Sequence[str], **more: Any
) -> Result:
    """Ask for a plan, wait for it and write its files."""
    job = client.calibrate(
        base_model=f"local:{MODEL}", dataset=dataset, budget=MEAN_RANK, **more
    )
    if job.cached:
        story.tell(f"answered from the cache: {job.id} had asked the same before", "green")
    with JobProgress(story.console) as progress:
        result = job.wait(poll_every=0.1, on_progress=progress)
    if not job.cached:
        story.tell(f"{job.id} succeeded")
    write(story, job, folder, files)
    return result


def write(story: Story, job: JobHandle, folder: Path, wanted: Sequence[str]) -> None:
    """Fetch the files, each checked by its digest.

    Raises:
        DemoFailed: One is missing.
    """
    files = job.download(folder)
    missing = [name for name in wanted if name not in files]
    if missing:
        raise DemoFailed(f"the result has no {', '.join(missing)}")
    story.tell(f"wrote {', '.join(wanted)} to {folder}/")


def begin_with_eva(
    story: Story,
    client: Client,
    dataset: str,
    model_folder: Path,
    result: Result,
    rows: list[Row],
) -> None:
    """Ask for the same plan with EVA's initial weights, and train from these.

    Raises:
        DemoFailed: The ranks are others: what training begins with is not to move them.
    """
    folder = OUTPUT / EVA_FOLDER
    quick = {"signal": False}  # it changes no rank, and was stated of this plan already
    eva = ask(
        story, client, dataset, folder, (*FILES, WEIGHTS),
        adapter={"init": "eva"}, calibration=quick,
    )  # fmt: skip
    if eva.rank_pattern != result.rank_pattern:
        raise DemoFailed("with EVA's A the ranks are not those of the plan")
    story.tell("the same ranks; A begins with the leading directions of each module's inputs,")
    story.tell("B with zero, and the head, which the file has too, as it was fitted")
    train_adapter(story, model_folder, folder, eva, rows)
    story.tell("one seed and 20 steps: shown to work, not to be better", "dim")


def train_adapter(
    story: Story, model_folder: Path, folder: Path, result: Result, rows: list[Row]
) -> None:
    """Load what was written with stock PEFT, train it, and see that the loss falls."""
    with Progress(
        TextColumn("  {task.description}"), BarColumn(32), TextColumn("{task.fields[loss]}"),
        console=story.console, transient=True, auto_refresh=False,
    ) as bar:  # fmt: skip
        task = bar.add_task("loading", total=N_STEPS, loss="")

        def on_step(step: int, loss: float) -> None:
            bar.update(
                task, description=f"step {step:2}", completed=step, loss=f"loss {loss:.3f}"
            )

        trained = train(model_folder, folder, rows, on_step=on_step)
    story.tell(f"PEFT loaded {len(trained.ranks)} modules with the planned ranks")
    for start in range(0, N_STEPS, 5):
        losses = "  ".join(f"{loss:.3f}" for loss in trained.losses[start : start + 5])
        story.tell(f"steps {start + 1:2}-{start + 5:<2}  loss  {losses}")
    check(trained, planned=result.rank_pattern)
    story.tell(f"mean loss {trained.first:.3f} at first, {trained.last:.3f} at last")


def state_signal(story: Story, result: Result) -> None:
    """Say how much of the plan is the task, whatever that is.

    Raises:
        DemoFailed: The plan does not say.
    """
    if result.rank_map.signal is None:
        raise DemoFailed("the plan does not say how much of it follows from the task")
    story.tell(result.rank_map.signal.sentence)
    if head := head_line(result.rank_map.provenance.get("head")):
        story.tell(f"measured under a head {head}", "dim")


if __name__ == "__main__":
    sys.exit(main())
