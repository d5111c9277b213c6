"""``fimlora pin`` and ``pins``: names that CI and clusters fetch results by."""

from typing import Annotated

import typer

from fimlora_client.cli.common.console import ago, make_table, out, say, show_json
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.options import AsJson, Tenant
from fimlora_contract.rank_patterns import Pin


def pin(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as the task's name.")],
    tag: Annotated[str, typer.Argument(metavar="TAG", help="Such as prod.")],
    result: Annotated[
        str | None,
        typer.Argument(
            metavar="RESULT",
            help="A job (job_...) or a digest (sha256:...); left out, the name is shown.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give a result a name that CI fetches it by.

    Without RESULT, show what the name stands for and stood for.

    [bold]Examples[/bold]

      fimlora pin sst2 prod job_...
      fimlora pin sst2 prod
      fimlora fetch --pin sst2:prod --format axolotl --output lora.yaml
    """
    patterns = client_of(ctx).rank_patterns
    if result is None:
        found = patterns.history(name, tag)
    elif result.startswith("sha256:"):
        found = patterns.pin(name, tag, digest=result)
    else:
        found = patterns.pin(name, tag, job_id=result)
    if as_json:
        show_json(found.model_dump(mode="json"))
    elif result is None:
        _show_history(found)
    else:
        out().print(found.digest)
        say_pinned(name, tag)


group = typer.Typer(
    help="List the names that results are fetched by.",
    invoke_without_command=True,
    rich_markup_mode="rich",
)
PAGE = 100
SHOWN = len("sha256:") + 12  # of a digest: to be told from others at a glance


@group.callback()
def root(ctx: typer.Context) -> None:
    """List what names stand for, or with [bold]pins history[/bold] what one stood for."""
    if not ctx.invoked_subcommand:
        list_pins(ctx)


@group.command("list")
def list_pins(ctx: typer.Context, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """List what names stand for: your own, and those that all share."""
    patterns = client_of(ctx).rank_patterns
    page = patterns.pins(limit=PAGE, tenant=tenant)
    pins = list(page.data)
    while page.next_cursor:
        page = patterns.pins(limit=PAGE, cursor=page.next_cursor, tenant=tenant)
        pins += page.data
    if as_json:
        show_json([pin.model_dump(mode="json") for pin in pins])
        return
    if not pins:
        say("nothing is pinned yet; pin a result with  fimlora pin NAME TAG job_...")
        return
    by_owner = ["tenant"] if any(pin.owner for pin in pins) else []
    table = make_table("pin", "stands for", "age", *by_owner)
    for pin in pins:
        age = ago(pin.pinned_at).removesuffix(" ago")
        owner = [pin.owner or "all"] if by_owner else []
        table.add_row(f"{pin.name}:{pin.tag}", f"{pin.digest[:SHOWN]}…", age, *owner)
    out().print(table)


@group.command("history")
def history(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the pin.")],
    tag: Annotated[str, typer.Argument(metavar="TAG", help="Tag of the pin.")],
    as_json: AsJson = False,
) -> None:
    """Show what a name stands for and stood for: since when, and by whose key."""
    found = client_of(ctx).rank_patterns.history(name, tag)
    if as_json:
        show_json(found.model_dump(mode="json"))
    else:
        _show_history(found)


def read_pin(text: str) -> tuple[str, str]:
    """Name and tag of ``NAME:TAG``."""
    name, _, tag = text.partition(":")
    if not (name and tag):
        raise typer.BadParameter(f"--pin {text!r} is not of the form NAME:TAG")
    return name, tag


def say_pinned(name: str, tag: str) -> None:
    """Tell that a pin was set, and how to use it."""
    say(("✓ ", "green"), f"{name}:{tag} stands for this result")
    say(("  fetch it with  ", "dim"), f"fimlora fetch --pin {name}:{tag} --output FILE")


def _show_history(pin: Pin) -> None:
    by_key = ["by"] if any(entry.pinned_by for entry in pin.history) else []
    table = make_table("digest", "age", *by_key)
    for entry in pin.history:
        age = ago(entry.pinned_at).removesuffix(" ago")
        table.add_row(entry.digest, age, *([entry.pinned_by] if by_key else []))
    out().print(table)
