"""``fimlora verify``: whether an adapter was trained as planned, from its files alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from fimlora_client.blocking.client import Client
from fimlora_client.cli.common.console import (
    DIFFERS,
    err,
    make_table,
    out,
    print_plain,
    say,
    show_json,
)
from fimlora_client.cli.common.context import client_of
from fimlora_client.cli.common.options import AsJson
from fimlora_client.cli.results.pins import read_pin
from fimlora_client.cli.results.verify_markdown import as_markdown
from fimlora_client.verification import plan_of_job, verified

if TYPE_CHECKING:
    from fimlora.adapter.verifying.findings import Verification

WHICH = "The plan (exactly one)"
_SHOWN = 12  # faults in the table


def _option(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=WHICH, help=help, show_default=False, **more)


def verify(
    ctx: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="ADAPTER|RUN",
            help="An adapter's folder, or a Trainer's output folder: its newest checkpoint.",
            show_default=False,
        ),
    ],
    plan: Annotated[
        str | None,
        _option("--plan", help="A rank_map.json, the folder of one, or a fetched pattern."),
    ] = None,
    pin: Annotated[
        str | None, _option("--pin", metavar="NAME:TAG", help="What a pin stands for.")
    ] = None,
    job: Annotated[str | None, _option("--job", metavar="ID", help="A job's plan.")] = None,
    digest: Annotated[
        str | None,
        _option("--digest", metavar="SHA256", help="A result by its content, sha256:..."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            metavar="NAME",
            help="What the base model is called in training, where that is another name of the "
            "planned one, such as a copy.",
            show_default=False,
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print it as Markdown, for a comment.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tell whether an adapter was trained as planned.

    Compares modules, ranks, scales (alpha over rank), parameters, padding,
    modules trained in full and the base model, and names the next step. With
    --plan it needs no service. In training, fimlora.VerifyPlan does the same
    before the first step.

    Exit codes: 0 as planned, 6 not as planned, 1 there is no adapter or plan.

    [bold]Examples[/bold]

      fimlora verify trained --plan planned
      fimlora verify run --pin sst2:prod
      fimlora verify run/checkpoint-500 --job job_... --json
    """
    given = {"--plan": plan, "--pin": pin, "--job": job, "--digest": digest}
    if len([value for value in given.values() if value is not None]) != 1:
        raise typer.BadParameter(f"which plan? Give exactly one of {', '.join(given)}.")
    source: str | Mapping[str, Any]
    source = plan if plan is not None else _planned_by(client_of(ctx), pin, job, digest)
    with err().status("reading the adapter"):
        found = verified(folder, source, base_model=base_model)
    if as_json:
        show_json(found.to_json())
    elif markdown:
        print_plain(as_markdown(found))
    else:
        _show(found)
    if not found.as_planned:
        raise typer.Exit(DIFFERS)


def _planned_by(
    client: Client, pin: str | None, job_id: str | None, digest: str | None
) -> Mapping[str, Any]:
    """The plan that a pin stands for, that a job has made, or with that content."""
    if digest is not None:
        return client.rank_patterns.retrieve(digest).pattern.model_dump(mode="json")
    if pin is None:
        return plan_of_job(client.jobs.retrieve(str(job_id)))
    # A slash is how the route and the page of a pin have it.
    name, tag = read_pin(pin if ":" in pin else pin.replace("/", ":", 1))
    return client.rank_patterns.pinned(name, tag).pattern.model_dump(mode="json")


def _show(found: "Verification") -> None:
    table = make_table(
        "", "modules", "ranks", "parameters", right=("modules", "ranks", "parameters")
    )
    for name, totals in (("planned", found.planned), ("found", found.found)):
        table.add_row(name, str(totals.modules), str(totals.ranks), f"{totals.parameters:,}")
    out().print(table)
    if found.faults:
        _show_faults(found)
    for note in found.notes:
        say(("note  ", "dim"), note)
    if found.as_planned:
        say(("✓ ", "green"), found.sentence)
        return
    say(("✗ ", "bold red"), f"{found.subject} is not as planned: ", found.faults[0].message)
    say("  ", found.next_step)


def _show_faults(found: "Verification") -> None:
    table = make_table("fault", "module", "planned", "found")
    for fault in found.faults[:_SHOWN]:
        table.add_row(
            Text(fault.code, "red"), Text(fault.module), Text(fault.planned), Text(fault.found)
        )
    out().print(table)
    if len(found.faults) > _SHOWN:
        more = len(found.faults) - _SHOWN
        out().print(Text(f"... and {more} more; --json has all", "dim"))
