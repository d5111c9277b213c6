"""``fimlora models``: base models by name, and naming a folder of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from fimlora_client.cli.common.console import make_table, out, say, show_json, size
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.folders import DataDir, data_dir_of, link
from fimlora_client.errors import InvalidFile

group = typer.Typer(
    help="List registered base models, or register a folder.",
    invoke_without_command=True,
    rich_markup_mode="rich",
)


@group.callback()
def list_models(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List registered base models, or register a folder with [bold]models add[/bold]."""
    if ctx.invoked_subcommand:
        return
    page = client_of(ctx).models.list()
    if as_json:
        show_json([model.model_dump(mode="json") for model in page.data])
        return
    if not page.data:
        say("no models yet; name one with  fimlora models add NAME FOLDER")
        return
    table = make_table("model", "architecture", "size", "", right=("size",))
    for model in page.data:
        note = "" if model.usable else f"[red]{model.problem or 'not usable'}[/]"
        table.add_row(model.id, model.architecture or "", size(model.size), note)
    out().print(table)


@group.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="How requests will call it.")],
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Folder with config.json, safetensors and tokenizer."
        ),
    ],
    data_dir: DataDir = None,
) -> None:
    """Give a model folder of this machine a name, by a link in the data folder."""
    folder = folder.expanduser().absolute()
    missing = [what for what in ("config.json", "*.safetensors") if not any(folder.glob(what))]
    if missing:
        raise InvalidFile(f"{folder} is not a model folder: it holds no {missing[0]}")
    path = link(data_dir_of(data_dir) / "models", name, folder)
    say(("✓ ", "green"), f"{name} is {folder}")
    say(("  link  ", "dim"), str(path))
