"""``fimlora fetch``: bring a result here, and touch nothing that is right already."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypedDict, cast, get_args

import typer
from rich.text import Text

from fimlora_client.aio.evaluations import REPORT
from fimlora_client.blocking.client import Client
from fimlora_client.calls import Answer, Call
from fimlora_client.cli.common import completion
from fimlora_client.cli.common.console import err, out, print_plain, say, size
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.request_fields import read_amount
from fimlora_client.cli.results.pins import read_pin
from fimlora_client.errors import JobNotFinished, failure_of, problem_of
from fimlora_client.files import write_text
from fimlora_client.patterns import FetchedPattern, Format, KeptFile
from fimlora_contract.artifacts import Artifact
from fimlora_contract.budgets import SPELLINGS
from fimlora_contract.jobs import Job, JobKind, JobStatus
from fimlora_contract.requests import DIGEST

LookUp = Callable[[str | None], FetchedPattern]
SHOWN = ("content-type", "content-length", "etag", "cache-control", "content-location")


class Words(TypedDict):
    """In whose words a pattern is wanted."""

    format: Format
    steps: int | None
    accumulation: int | None


WHICH, HOW = "Which result (exactly one)", "How"


Steps = Annotated[
    int | None,
    typer.Option(
        help="With --format adalora: optimizer steps of the training.",
        min=2,
        show_default=False,
    ),
]
Accumulation = Annotated[
    int | None,
    typer.Option(
        help="With --format adalora: micro-batches per optimizer step.",
        min=1,
        show_default=False,
    ),
]


def fetch(
    ctx: typer.Context,
    job_id: Annotated[
        str | None,
        typer.Argument(
            metavar="ID",
            help="Id of a job, job_...",
            show_default=False,
            autocompletion=completion.job_ids,
        ),
    ] = None,
    pin: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:TAG",
            help="What a pin stands for.",
            rich_help_panel=WHICH,
            autocompletion=completion.pins,
        ),
    ] = None,
    digest: Annotated[
        str | None, typer.Option(help="By content, sha256:...", rich_help_panel=WHICH)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The newest for a model and --dataset.", rich_help_panel=WHICH),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="With --model.", rich_help_panel=WHICH)
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help=f"With --model; {SPELLINGS}.",
            rich_help_panel=WHICH,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help=f"One of {', '.join(get_args(Format))}.",
            autocompletion=completion.formats,
        ),
    ] = None,
    steps: Steps = None,
    accumulation: Accumulation = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File for a pattern (standard output if left out); folder for the files "
            "of a job.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Of a job: only if --public-key has signed it.")
    ] = False,
    public_key: Annotated[
        list[Path] | None,
        typer.Option(help="With --verify: a key in PEM; again for others.", show_default=False),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show requests and answers.")
    ] = False,
) -> None:
    """Bring here the files of a job, or a rank pattern for CI.

    Files go into a folder, a pattern into a file. What is here already and
    still right is not sent again and left untouched; all is checked by its
    digest. The tag of a pattern is kept beside it, in FILE.etag. With --verify
    nothing is written unless every file is signed, and no other is there.

    Exit codes: 0 it is there, 3 not found, 4 the job failed or was canceled,
    5 the job has not ended.

    [bold]Examples[/bold]

      fimlora fetch job_... --output adapter
      fimlora fetch job_... --output adapter --verify --public-key signing.pub
      fimlora fetch --pin sst2:prod --format axolotl --output lora.yaml
      fimlora fetch --model minilm --dataset my-rows --budget 8 --format peft
      fimlora fetch job_... --format adalora --steps 2000
    """
    client = client_of(ctx)
    if verbose:
        client.watch(_show)
    by_name = {"ID": job_id, "--pin": pin, "--digest": digest, "--model": model}
    if len([given for given in by_name.values() if given is not None]) != 1:
        raise typer.BadParameter(f"which result? Give exactly one of {', '.join(by_name)}.")
    words = _words(format, steps, accumulation)
    keys = _keys(verify=verify, public_keys=public_key or [], of_job=job_id and not format)
    if job_id is not None and format is None:
        _fetch_files(client, job_id, output, keys)
        return
    look_up = _look_up(client, job_id, pin, digest, (model, dataset, budget), words)
    if output is None:
        print_plain((look_up(None).text or "").rstrip("\n"))
    else:
        _keep(output.expanduser(), look_up)


def _look_up(
    client: Client,
    job_id: str | None,
    pin: str | None,
    digest: str | None,
    inputs: tuple[str | None, str | None, str | None],
    words: Words,
) -> LookUp:
    """How to ask for the pattern; the argument is the tag of a copy."""
    patterns = client.rank_patterns
    if job_id is not None:
        job = _succeeded(client, job_id)
        assert job.result  # as of every job that has succeeded
        digest = job.result.digest
    if digest is not None:
        if not re.match(DIGEST, digest):
            raise typer.BadParameter(
                f"--digest {digest!r} is not sha256: and 64 hexadecimal digits"
            )
        return lambda etag: patterns.retrieve(digest, etag=etag, **words)
    if pin is not None:
        name, tag = read_pin(pin)
        return lambda etag: patterns.pinned(name, tag, etag=etag, **words)
    model, dataset, budget = inputs
    if budget is not None:
        read_amount("--budget", budget, given=budget)
    if not (model and dataset):
        raise typer.BadParameter("--model needs --dataset, the other half of the inputs")
    return lambda etag: patterns.find(model, dataset, budget=budget, etag=etag, **words)


def _keep(path: Path, look_up: LookUp) -> None:
    """Fetch a pattern into a file, unless the file is right already."""
    kept = KeptFile(path)
    fetched = look_up(kept.etag)
    if fetched.text is None:
        say(("✓ ", "green"), f"not modified: {path} is still right and was left untouched")
    else:
        kept.write(fetched.text, etag=fetched.etag)
        say(("✓ ", "green"), f"fetched {size(len(fetched.text.encode()))} of {fetched.digest}")
    out().print(Text(str(path)), soft_wrap=True)


def _keys(*, verify: bool, public_keys: list[Path], of_job: object) -> list[Path]:
    """The keys to verify with, if anything is to be verified."""
    if verify != bool(public_keys):
        raise typer.BadParameter("--verify and --public-key FILE go together")
    if verify and not of_job:
        raise typer.BadParameter("--verify is for the files of a job: give its ID and --output")
    return [path.expanduser() for path in public_keys]


def _fetch_files(
    client: Client, job_id: str, folder: Path | None, public_keys: list[Path]
) -> None:
    if folder is None:
        raise typer.BadParameter("where to? Give --output DIR, or a --format for one pattern.")
    job = _succeeded(client, job_id)
    fetched: list[str] = []

    def on_file(artifact: Artifact) -> None:
        fetched.append(artifact.name)
        err().print(Text(f"  {artifact.name}  {size(artifact.size)}", "dim"), soft_wrap=True)

    files = client.jobs.download(
        job_id, folder.expanduser(), on_file=on_file, public_keys=public_keys
    )
    if job.kind is JobKind.EVALUATION and not public_keys:  # nobody signs a page that is drawn
        files.setdefault(REPORT, folder.expanduser() / REPORT)
        if _differs(files[REPORT], text := client.jobs.report(job_id)):
            write_text(files[REPORT], text)
            fetched.append(REPORT)
    if same := len(files) - len(fetched):
        say(("✓ ", "green"), f"{same} of {len(files)} files were right and left untouched")
    if public_keys:
        say(("✓ ", "green"), "every file is signed, and no other is there")
    for name in sorted(files):
        out().print(Text(str(files[name])), soft_wrap=True)


def _differs(file: Path, text: str) -> bool:
    """Whether a file holds something else, or nothing that can be read."""
    try:
        return file.read_bytes() != text.encode()
    except OSError:
        return True


def _succeeded(client: Client, job_id: str) -> Job:
    """A job that has a result.

    Raises:
        JobNotFinished: It has not ended.
        JobFailed: It failed.
        JobCanceled: It was canceled.
    """
    job: Job = client.jobs.retrieve(job_id)
    if not job.status.is_final:
        raise JobNotFinished(problem_of("job_not_finished", f"job {job.id} is {job.status}"))
    if job.status is not JobStatus.SUCCEEDED or job.result is None:
        raise failure_of(job)
    return job


def _words(given: str | None, steps: int | None, accumulation: int | None) -> Words:
    """In whose words the pattern is wanted, as the look-ups take it."""
    if given is not None and given not in get_args(Format):
        raise typer.BadParameter(f"--format {given!r}; allowed: {', '.join(get_args(Format))}")
    check_schedule(given, steps, accumulation)
    return {
        "format": cast("Format", given or "json"),
        "steps": steps,
        "accumulation": accumulation,
    }


def check_schedule(format: str | None, steps: int | None, accumulation: int | None) -> None:
    """Refuse AdaLoRA without the steps that its ranks fall by, and steps without AdaLoRA.

    Raises:
        typer.BadParameter: One is there without the other.
    """
    if format == "adalora" and steps is None:
        raise typer.BadParameter("--format adalora needs --steps, the optimizer steps to train")
    if format != "adalora" and (steps, accumulation) != (None, None):
        raise typer.BadParameter("--steps and --accumulation are for --format adalora only")


def _show(call: Call, answer: Answer) -> None:
    """An exchange as curl would show it."""
    query = "&".join(f"{name}={value}" for name, value in call.params.items())
    lines = [f"> {call.method} {call.path}{'?' if query else ''}{query}"]
    lines += [f"> {name}: {value}" for name, value in call.headers.items()]
    lines += [f"< {answer.status}"]
    lines += [f"< {name}: {answer.headers[name]}" for name in SHOWN if name in answer.headers]
    err().print(Text("\n".join(lines), "dim"), soft_wrap=True)
