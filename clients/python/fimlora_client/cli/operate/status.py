"""``fimlora status`` and ``workers``: whether jobs can run, and who would run them."""

import typer
from rich.text import Text

from fimlora_client.cli.common.console import ERROR, ago, make_table, out, say, show_json, size
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.options import AsJson

STYLES = {"ok": "green", "degraded": "yellow", "unavailable": "red"}


def status(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Tell whether the service can take jobs.

    Exits with 1 when it cannot.

    [bold]Example[/bold]

      fimlora status
    """
    client = client_of(ctx)
    health, version = client.health(), client.version()
    if as_json:
        show_json(health.model_dump(mode="json") | {"version": version.model_dump(mode="json")})
    else:
        out().print(
            Text.assemble(
                (health.status, STYLES[health.status]),
                f"  fimlora {version.fimlora} at {client.base_url}",
            ),
            soft_wrap=True,
        )
        for name, state in health.checks.items():
            style = "" if state == "ok" else "yellow"
            out().print(Text.assemble((f"  {name:<10}", "dim"), (state, style)), soft_wrap=True)
    if health.status == "unavailable":
        raise typer.Exit(ERROR)


def workers(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List living workers and what each is busy with.

    [bold]Example[/bold]

      fimlora workers
    """
    living = client_of(ctx).workers.list().data
    if as_json:
        show_json([worker.model_dump(mode="json") for worker in living])
        return
    if not living:
        say("no workers; jobs wait until one starts, as with  fimlora up")
        return
    table = make_table("worker", "device", "memory", "busy with", right=("memory",))
    for worker in living:
        table.add_row(
            worker.name,
            worker.device_name or worker.device,
            "" if worker.memory_bytes is None else size(worker.memory_bytes),
            f"{worker.job_id or worker.state}\nfor {ago(worker.since).removesuffix(' ago')}",
        )
    out().print(table)
