"""``fimlora models``: base models by name, and naming a folder of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from fimlora_client.blocking.client import Client
from fimlora_client.cli.common.console import make_table, out, say, show_json, size
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.folders import RegistryDir, find_place, link, say_linked, unlink
from fimlora_client.errors import InvalidFile
from fimlora_contract.models import hub_id_of, is_base_model_name, name_file

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
    table = make_table("model", "architecture", "size", "adapters call it", "", right=("size",))
    for model in page.data:
        note = "" if model.usable else f"[red]{model.problem or 'not usable'}[/]"
        table.add_row(
            model.id, model.architecture or "", size(model.size), model.base_model or "", note
        )
    out().print(table)


@group.command("add")
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="How requests will call it.")],
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Folder with config.json, safetensors and tokenizer."
        ),
    ],
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            metavar="ID",
            help="What adapters call it: its hub id, or its path where you train. A snapshot of "
            "the hub's cache is known by its id, any other folder by the path given here.",
            show_default=False,
        ),
    ] = None,
    data_dir: RegistryDir = None,
) -> None:
    """Give a model folder of this machine a name, by a link in the service's data folder.

    [bold]Examples[/bold]

      fimlora models add minilm ./all-MiniLM-L6-v2
      fimlora models add minilm /models/minilm --base-model sentence-transformers/all-MiniLM-L6-v2
    """
    folder = folder.expanduser().absolute()
    missing = [what for what in ("config.json", "*.safetensors") if not any(folder.glob(what))]
    if missing:
        error = InvalidFile(f"{folder} is not a model folder: it holds no {missing[0]}")
        error.next_step = (
            "Give the folder that `save_pretrained` wrote, with safetensors weights."
        )
        raise error
    called = base_model or hub_id_of(folder.resolve()) or str(folder)
    if not is_base_model_name(called):
        raise typer.BadParameter(
            f"--base-model {called!r}: give a hub id or a path, in one line"
        )
    place = find_place(ctx, data_dir)
    room = place.data_dir / "models"
    path = link(room, name, folder)
    name_file(room, name).write_text(f"{called}\n", encoding="utf-8")
    say(("✓ ", "green"), f"{name} is {folder}")
    say(("  adapters call it  ", "dim"), called)
    say_linked(place, path, names=lambda client: _usable_or_not(client, name))


@group.command("rm")
def remove(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is registered as.")],
    data_dir: RegistryDir = None,
) -> None:
    """Take a name away again; the model's folder and all results stay.

    [bold]Example[/bold]

      fimlora models rm minilm
    """
    room = find_place(ctx, data_dir).data_dir / "models"
    unlink(room, name)
    name_file(room, name).unlink(missing_ok=True)
    say(name, " is no longer registered; its folder stays")


def _usable_or_not(client: Client, name: str) -> list[str]:
    """The names that the service knows; says why this one cannot be used, if it cannot."""
    models = client.models.list().data
    for model in models:
        if model.id == name and not model.usable:
            say((f"  it cannot be used: {model.problem}", "yellow"))
    return [model.id for model in models]
