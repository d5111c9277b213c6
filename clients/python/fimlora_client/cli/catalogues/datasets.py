"""``fimlora datasets``: rows to calibrate on."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from fimlora_client.blocking.client import Client
from fimlora_client.cli.common.console import ago, make_table, out, say, show_json, size
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.folders import RegistryDir, find_place, link, say_linked, unlink
from fimlora_client.cli.common.inputs import upload_file
from fimlora_client.cli.common.options import Tenant
from fimlora_client.errors import InvalidFile

DatasetId = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the dataset, ds_...", show_default=False)
]
group = typer.Typer(
    help="List datasets, or add one.", invoke_without_command=True, rich_markup_mode="rich"
)


@group.callback()
def list_datasets(
    ctx: typer.Context,
    tenant: Tenant = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List datasets, upload a file with [bold]datasets upload[/bold]."""
    if ctx.invoked_subcommand:
        return
    page = client_of(ctx).datasets.list(tenant=tenant)
    if as_json:
        show_json([dataset.model_dump(mode="json") for dataset in page.data])
        return
    if not page.data:
        say("no datasets yet; add one with  fimlora datasets upload FILE")
        return
    table = make_table(
        "dataset", "source", "rows", "size", "columns", "added", right=("rows", "size")
    )
    for dataset in page.data:
        rows = f"{dataset.rows:,}" if dataset.rows is not None else ""
        columns = ", ".join(dataset.columns)
        table.add_row(
            dataset.id,
            dataset.source,
            rows,
            size(dataset.size),
            columns,
            ago(dataset.created_at),
        )
    out().print(table)


@group.command("upload")
def upload(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .jsonl, .json, .csv or .parquet file.")
    ],
) -> None:
    """Upload a file; the same content again is the same dataset."""
    dataset = upload_file(client_of(ctx), file.expanduser())
    rows = f"{dataset.rows:,} rows" if dataset.rows is not None else "rows not counted"
    out().print(Text(dataset.id))
    say(("✓ ", "green"), f"{file.name}: {rows}, columns {', '.join(dataset.columns)}")


@group.command("show")
def show(ctx: typer.Context, dataset_id: DatasetId) -> None:
    """Show one dataset as JSON."""
    show_json(client_of(ctx).datasets.retrieve(dataset_id).model_dump(mode="json"))


@group.command("delete")
def delete(ctx: typer.Context, dataset_id: DatasetId) -> None:
    """Delete an upload that no open job needs; results made from it stay."""
    client_of(ctx).datasets.delete(dataset_id)
    say(dataset_id, " is deleted")


@group.command("add")
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="How requests will call it.")],
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A .jsonl, .csv or .parquet file, or a folder of them."
        ),
    ],
    data_dir: RegistryDir = None,
) -> None:
    """Give a file or folder of this machine a name, by a link in the data folder."""
    path = path.expanduser().absolute()
    if not path.exists():
        raise InvalidFile(
            f"there is no {path}", next_step="Check where the file or folder is, and its name."
        )
    place = find_place(ctx, data_dir)
    made = link(place.data_dir / "datasets", name, path)
    say(("✓ ", "green"), f"{name} is {path}")
    say_linked(place, made, names=_names)


@group.command("rm")
def remove(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is registered as.")],
    data_dir: RegistryDir = None,
) -> None:
    """Take a name away again; what it leads to stays. Uploads go by datasets delete.

    [bold]Example[/bold]

      fimlora datasets rm my-rows
    """
    unlink(find_place(ctx, data_dir).data_dir / "datasets", name)
    say(name, " is no longer registered; its files stay")


def _names(client: Client) -> list[str]:
    return [dataset.id for dataset in client.datasets.list().data]
