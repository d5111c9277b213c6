"""``fimlora keys``: who may use the service, for who has an admin key."""

import re
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from fimlora_client.cli.common.console import (
    ago,
    duration,
    make_table,
    out,
    print_plain,
    say,
    show_json,
)
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.options import AsJson, Tenant
from fimlora_contract.keys import NewApiKey

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
KeyId = Annotated[str, typer.Argument(metavar="ID", help="Id of the key.", show_default=False)]
group = typer.Typer(
    help="List API keys, make or revoke one.",
    invoke_without_command=True,
    rich_markup_mode="rich",
)


@group.callback()
def root(ctx: typer.Context) -> None:
    """List API keys, make one with [bold]keys create[/bold]."""
    if not ctx.invoked_subcommand:
        list_keys(ctx)


@group.command("list")
def list_keys(ctx: typer.Context, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """List keys, without their secrets."""
    page = client_of(ctx).keys.list(tenant=tenant)
    if as_json:
        show_json([key.model_dump(mode="json") for key in page.data])
        return
    if not page.data:
        say("no keys yet; make one with  fimlora keys create NAME --scopes admin")
        return
    table = make_table("key", "name", "tenant", "scopes", "made", "last used", "expires")
    for key in page.data:
        table.add_row(
            key.id,
            key.name,
            key.tenant,
            ", ".join(key.scopes),
            ago(key.created_at),
            ago(key.last_used_at) or "never",
            _until(key.expires_at),
        )
    out().print(table)


@group.command("create")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is, or what for.")],
    scopes: Annotated[
        str,
        typer.Option(help="What it allows, with commas: read, submit, cancel, admin."),
    ] = "read,submit,cancel",
    tenant: Annotated[
        str | None,
        typer.Option(help="Whose jobs and data it reaches.", show_default=False),
    ] = None,
    expires_in: Annotated[
        str | None,
        typer.Option(help="How long it lives, such as 12h or 90d.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key; it is printed once and can be read nowhere afterwards.

    The first key of a service must have scope admin and never expire: without it nobody could
    make another one.

    [bold]Examples[/bold]

      fimlora keys create me --scopes admin
      fimlora keys create ci --tenant acme --expires-in 90d
    """
    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    lives_s = None if expires_in is None else read_duration(expires_in)
    made = client_of(ctx).keys.create(name, scopes=wanted, tenant=tenant, expires_in_s=lives_s)
    _show_secret(made, as_json=as_json)


@group.command("rotate")
def rotate(
    ctx: typer.Context,
    key_id: KeyId,
    grace: Annotated[
        str, typer.Option(help="How long the secret before stays good, such as 0s or 7d.")
    ] = "1h",
    as_json: AsJson = False,
) -> None:
    """Give a key another secret; it is printed once."""
    made = client_of(ctx).keys.rotate(key_id, grace_s=read_duration(grace))
    _show_secret(made, as_json=as_json)
    if made.rotated_until and not as_json:
        say(("  the secret before stays good for  ", "dim"), grace)


@group.command("revoke")
def revoke(ctx: typer.Context, key_id: KeyId) -> None:
    """Revoke a key; what was made with it stays."""
    client_of(ctx).keys.revoke(key_id)
    say(key_id, " is revoked")


def read_duration(text: str) -> int:
    """Seconds of a length of time such as ``90d``."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is no length of time; give a number and a unit: 30s, 15m, 12h or 90d"
        )
    return int(match[1]) * UNITS[match[2]]


def _show_secret(made: NewApiKey, *, as_json: bool) -> None:
    if as_json:
        show_json(made.model_dump(mode="json"))
        return
    print_plain(made.key)
    whose = f", tenant {made.tenant}" if made.tenant else ""
    say(("✓ ", "green"), f"{made.name} ({made.id}){whose}: {', '.join(made.scopes)}")
    say(("  keep it now, it is not shown again; use it with  ", "dim"), "FIMLORA_API_KEY=…")


def _until(time: datetime | None) -> Text:
    if time is None:
        return Text("never", "dim")
    left = (time - datetime.now(UTC)).total_seconds()
    return Text("expired", "red") if left <= 0 else Text(f"in {duration(left)}")
