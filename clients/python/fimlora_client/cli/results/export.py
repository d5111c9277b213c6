"""``fimlora export``: a plan or a trained adapter in the words of the tool that is to read it."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.text import Text

from fimlora_client.blocking.client import Client
from fimlora_client.cli.catalogues.adapter_files import engine_errors
from fimlora_client.cli.common import completion
from fimlora_client.cli.common.console import out, print_plain, say
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.results.fetch import Accumulation, Steps, Words, check_schedule
from fimlora_client.cli.results.pins import read_pin
from fimlora_client.cli.results.references import FILE
from fimlora_client.errors import ClientError, MissingExtra
from fimlora_client.files import write_text
from fimlora_client.patterns import Format

TEXTS = tuple(name for name in get_args(Format) if name not in {"json", "yaml"})
# What reads an adapter of one rank throughout only, and how it is started with the folder.
PADDED = {
    "gguf": "python convert_lora_to_gguf.py --base BASE_MODEL_DIR {folder}",
    "sglang": "--enable-lora --lora-paths fimlora={folder}",
    "tgi": "--lora-adapters fimlora={folder}",
    "lorax": "--adapter-id {folder} --adapter-source local",
    "tensorrt-llm": "--lora_dir {folder}",
}
REFUSED = {
    "torchtune": "it has one rank for all modules and checkpoints of its own",
    "nemo": "it has one rank for all modules and checkpoints of its own",
    "kubeflow": "its built-in trainer has one rank for all modules; train by a script of your own, "
    "with --format trl",
    "diffusers": "it is for models of another kind",
}
STACKED = ("tgi", "lorax")  # they stack a type of modules over all layers
LAYER = re.compile(r"\.(\d+)\.")


class CannotExport(ClientError, ValueError):
    """A tool cannot read this plan or adapter."""

    code = "cannot_export"


def export(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="JOB|PIN|ADAPTER",
            help="A job (job_...), a digest, a pin (NAME:TAG), or an adapter's folder.",
            show_default=False,
            autocompletion=completion.results,
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help=f"A plan as {', '.join(TEXTS)}; a trained adapter as {', '.join(PADDED)}.",
            show_default=False,
            autocompletion=lambda incomplete: [
                name for name in (*TEXTS, *PADDED) if name.startswith(incomplete)
            ],
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            show_default=False,
            help="File for a plan (standard output if left out); folder for a trained adapter.",
        ),
    ] = None,
    steps: Steps = None,
    accumulation: Accumulation = None,
) -> None:
    """Write a plan, or a trained adapter, as a trainer or a server reads it.

    A plan becomes text: a config, arguments, or a snippet. gguf and servers that know one rank
    only get the trained adapter, padded, in a new folder, and the command to go on with. What
    a tool would misread is refused, with the reason.

    [bold]Examples[/bold]

      fimlora export job_... --format axolotl -o lora.yaml
      fimlora export reviews:prod --format trl
      fimlora export job_... --format adalora --steps 2000
      fimlora export ./trained --format gguf -o ./padded
    """  # fmt: skip
    if format in REFUSED:
        raise CannotExport(f"--format {format}: {REFUSED[format]}")
    if format not in (*TEXTS, *PADDED):
        raise typer.BadParameter(
            f"--format {format!r}; allowed: {', '.join((*TEXTS, *PADDED))}"
        )
    check_schedule(format, steps, accumulation)
    folder = Path(source).expanduser()
    if format in PADDED:
        _write_padded(source, folder, format, output)
    else:
        text = (
            _from_folder(folder, source, format, steps, accumulation)
            if folder.is_dir()
            else _from_service(client_of(ctx), source, _words(format, steps, accumulation))
        )
        if output is None:
            print_plain(text.rstrip("\n"))
        else:
            write_text(output.expanduser(), text)
            out().print(Text(str(output)), soft_wrap=True)


def _words(format: str, steps: int | None, accumulation: int | None) -> Words:
    return {"format": cast("Format", format), "steps": steps, "accumulation": accumulation}


def _from_service(client: Client, source: str, words: Words) -> str:
    if source.startswith("sha256:"):
        found = client.rank_patterns.retrieve(source, **words)
    elif source.startswith("job_"):
        digest = client.jobs.result(source).digest
        found = client.rank_patterns.retrieve(digest, **words)
    elif ":" in source:
        found = client.rank_patterns.pinned(*read_pin(source), **words)
    else:
        raise typer.BadParameter(
            f"{source} is no folder here, no id of a job, no digest and no NAME:TAG"
        )
    return found.text or ""


def _from_folder(
    folder: Path, named: str, format: str, steps: int | None, accumulation: int | None
) -> str:
    with engine_errors():
        from fimlora.adapter.read import load_plan, read_adapter_config

        try:
            from fimlora.adapter.exports import export as written
        except ImportError as error:
            raise MissingExtra(
                f"{error.name} is not installed here: pip install 'fimlora[engine]'"
            ) from error
        if not (folder / FILE).is_file():
            raise CannotExport(
                f"--format {format} is made from a plan, and {named} has no {FILE}",
                next_step="Give the folder that `fimlora fetch JOB` wrote, the job, or its pin; "
                f"of a trained adapter are made {', '.join(PADDED)}.",
            )
        plan, config = load_plan(folder), read_adapter_config(folder)
        return written(
            plan, config, format, steps=steps, accumulation_steps=accumulation, folder=named
        ).text


def _write_padded(source: str, folder: Path, format: str, output: Path | None) -> None:
    if not folder.is_dir():
        failure = CannotExport(
            f"--format {format} is made from a trained adapter, and {source} is no folder here"
        )
        failure.next_step = "Train first; `fimlora export JOB --format peft` starts a training."
        raise failure
    if output is None:
        raise typer.BadParameter(f"--format {format} writes a folder: give --output DIR")
    output = output.expanduser()
    if output.exists():
        raise CannotExport(f"{output} exists; name a folder that is not there yet")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fimlora-", dir=output.parent) as work:
        made = Path(work) / "adapter"
        with engine_errors():
            from fimlora.adapter.convert import convert_adapter

            found = convert_adapter(folder, made, layout="C")
        assert found.width
        check_readable(format, found.ranks, found.width)
        made.replace(output)
    out().print(Text(found.sentence), soft_wrap=True)
    say(("  go on with  ", "dim"), PADDED[format].format(folder=output))


def check_readable(format: str, modules: Collection[str], width: int) -> None:
    """Refuse what a server would load and get wrong.

    Args:
        format: The server.
        modules: Names of the modules that have LoRA.
        width: The rank that all are padded to.

    Raises:
        CannotExport: It would not read this adapter as it was trained.
    """
    kinds: dict[str, set[str]] = defaultdict(set)
    for name in modules:
        kinds[name.rpartition(".")[2]] |= {*LAYER.findall(name)[:1]}
    if format == "sglang" and "q_proj" in kinds and "v_proj" not in kinds:
        raise CannotExport("SGLang fails on an adapter with q_proj and without v_proj")
    if format not in STACKED:
        return
    if width % 16:
        raise CannotExport(
            f"{format} takes ranks that are multiples of 16, and this adapter is padded to {width}"
        )
    layers = set().union(*kinds.values())
    for kind, found in kinds.items():
        if missing := sorted(layers - found, key=int):
            raise CannotExport(
                f"{format} drops {kind} everywhere where one layer lacks it, as {missing[0]} does"
            )
