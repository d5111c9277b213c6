"""``fimlora adapters``: trained adapters that the service keeps or knows by name."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from fimlora_client.adapter_archive import FILES
from fimlora_client.blocking.client import Client
from fimlora_client.cli.common.console import err, make_table, out, say, show_json, size
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.folders import RegistryDir, find_place, link, say_linked, unlink
from fimlora_client.cli.common.options import Tenant
from fimlora_client.errors import InvalidFile

AdapterId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Id of the adapter, ad_..., or a name.", show_default=False
    ),
]
group = typer.Typer(
    help="List trained adapters, or add one.",
    invoke_without_command=True,
    rich_markup_mode="rich",
)


@group.callback()
def list_adapters(
    ctx: typer.Context,
    tenant: Tenant = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List adapters, upload a folder with [bold]adapters upload[/bold]."""
    if ctx.invoked_subcommand:
        return
    page = client_of(ctx).adapters.list(tenant=tenant)
    if as_json:
        show_json([adapter.model_dump(mode="json") for adapter in page.data])
        return
    if not page.data:
        say("no adapters yet; add one with  fimlora adapters upload FOLDER")
        return
    table = make_table(
        "adapter", "source", "ranks", "parameters", "base model", right=("parameters",)
    )
    for adapter in page.data:
        ranks = " to ".join(map(str, sorted({adapter.rank_min, adapter.rank_max})))
        table.add_row(
            adapter.id,
            adapter.source,
            ranks,
            f"{adapter.parameters:,}",
            (adapter.base_model or "")
            if adapter.usable
            else Text(adapter.problem or "not usable", "red"),
        )
    out().print(table)


@group.command("upload")
def upload(
    ctx: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help=f"Folder with {' and '.join(FILES)}."),
    ],
) -> None:
    """Upload a folder; the same adapter again is the same."""
    with err().status(f"uploading {folder.name}"):
        adapter = client_of(ctx).adapters.upload(folder.expanduser())
    out().print(Text(adapter.id))
    say(("✓ ", "green"), f"{adapter.n_modules} modules, {adapter.parameters:,} parameters")


@group.command("show")
def show(ctx: typer.Context, adapter_id: AdapterId) -> None:
    """Show one adapter as JSON."""
    show_json(client_of(ctx).adapters.retrieve(adapter_id).model_dump(mode="json"))


@group.command("download")
def download(
    ctx: typer.Context,
    adapter_id: AdapterId,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for its files.", show_default=False)
    ],
) -> None:
    """Bring the files of an adapter here, checked by their digests."""
    files = client_of(ctx).adapters.download(
        adapter_id,
        output.expanduser(),
        on_file=lambda file: say((f"  {file.name}  {size(file.size)}", "dim")),
    )
    if not files:
        raise InvalidFile(
            f"{adapter_id} is registered: its files are where the operator has them",
            next_step="Take them from there.",
        )
    for name in sorted(files):
        out().print(Text(str(files[name])), soft_wrap=True)


@group.command("delete")
def delete(ctx: typer.Context, adapter_id: AdapterId) -> None:
    """Delete an adapter that no open job needs; what was made of it stays."""
    client_of(ctx).adapters.delete(adapter_id)
    say(adapter_id, " is deleted")


@group.command("add")
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="How requests will call it.")],
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help=f"Folder with {' and '.join(FILES)}."),
    ],
    data_dir: RegistryDir = None,
) -> None:
    """Give an adapter's folder of this machine a name, by a link in the data folder."""
    folder = folder.expanduser().absolute()
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise InvalidFile(
            f"{folder} is no adapter's folder: it holds no {missing[0]}",
            next_step="Give the folder that PEFT's `save_pretrained` wrote.",
        )
    place = find_place(ctx, data_dir)
    path = link(place.data_dir / "adapters", name, folder)
    say(("✓ ", "green"), f"{name} is {folder}")
    say_linked(place, path, names=_names)


@group.command("rm")
def remove(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is registered as.")],
    data_dir: RegistryDir = None,
) -> None:
    """Take a name away again; what it leads to stays. Uploads go by adapters delete.

    [bold]Example[/bold]

      fimlora adapters rm my-adapter
    """
    unlink(find_place(ctx, data_dir).data_dir / "adapters", name)
    say(name, " is no longer registered; its files stay")


def _names(client: Client) -> list[str]:
    return [adapter.id for adapter in client.adapters.list().data]
