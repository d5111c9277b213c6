"""The command line as a whole: global options, groups, and errors without tracebacks."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fimlora_client.cli.catalogues import adapter_files, adapters, datasets, models
from fimlora_client.cli.common.console import exit_code, print_plain, show_error
from fimlora_client.cli.common.context import Connection
from fimlora_client.cli.common.defaults import checked_defaults
from fimlora_client.cli.common.help_text import flow_help, flowing
from fimlora_client.cli.common.option_names import options_of, said_of_value
from fimlora_client.cli.local import calibrate as local_calibrate
from fimlora_client.cli.look import history, jobs, watch
from fimlora_client.cli.operate import cache, config, keys, mcp, status, up
from fimlora_client.cli.results import (
    diff,
    export,
    fetch,
    log,
    pins,
    report,
    signatures,
    verify,
)
from fimlora_client.cli.work import calibrate, compare, control, evaluate, plan, replan, sweep
from fimlora_client.errors import ClientError
from fimlora_client.settings import check_names
from fimlora_contract import __version__

HELP = """
Decide how much LoRA rank each weight matrix gets, before training starts.

[bold]First steps[/bold] (the first command keeps running; use two terminals):

  fimlora up
  fimlora models add minilm ./all-MiniLM-L6-v2
  fimlora calibrate minilm train.jsonl --budget 8 --output adapter

Commands talk to FIMLORA_URL, by default http://127.0.0.1:8000. Results go to
standard output, all else to standard error. Exit codes: 0 done, 1 error,
2 wrong usage, 3 not found, 4 job failed, 5 not finished, 6 a check says no.
"""


class Commands(TyperGroup):
    """Turns the client's exceptions into a line and an exit code, whatever command ran."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = said_of_value(error)
            raise
        except ClientError as error:
            show_error(error, options_of(self.commands.get(ctx.invoked_subcommand)))
            raise typer.Exit(exit_code(error)) from error


def _show_version(wanted: bool) -> None:  # typer hands over the flag
    if wanted:
        print_plain(f"fimlora {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="fimlora",
    cls=Commands,
    help=flowing(HELP),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    ctx: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(
            "--url", help="Where the service is, such as localhost:8000.", show_default=False
        ),
    ] = None,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """Options before the command hold for all commands."""
    check_names()
    calibrate_options = ctx.command.commands["calibrate"].params  # type: ignore[attr-defined]
    ctx.default_map = {"calibrate": checked_defaults(calibrate_options)}
    ctx.obj = ctx.obj or Connection(url=url)


# What the help page shows, in its order.
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Start": {"up": up.up, "status": status.status, "config": config.config, "mcp": mcp.mcp},
    "Work": {
        "calibrate": calibrate.calibrate,
        "plan": plan.plan,
        "replan": replan.replan,
        "compare": compare.compare,
        "sweep": sweep.sweep,
        "evaluate": evaluate.evaluate,
        "cancel": control.cancel,
        "retry": control.retry,
        "delete": control.delete,
    },
    "Results": {
        "fetch": fetch.fetch,
        "export": export.export,
        "report": report.report,
        "log": log.log,
        "verify": verify.verify,
        "verify-signature": signatures.verify_signature,
        "pin": pins.pin,
        "diff": diff.diff,
    },
    "Trained adapters": {
        "truncate": adapter_files.truncate,
        "audit": adapter_files.audit,
        "convert": adapter_files.convert,
    },
    "Look": {
        "jobs": jobs.list_jobs,
        "watch": watch.watch,
        "show": jobs.show,
        "events": history.events,
        "webhooks": history.webhooks,
        "artifacts": history.artifacts,
        "workers": status.workers,
        "cache": cache.cache,
    },
}
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)
app.add_typer(local_calibrate.group, name="local", rich_help_panel="Work")
app.add_typer(pins.group, name="pins", rich_help_panel="Results")
app.add_typer(models.group, name="models", rich_help_panel="Look")
app.add_typer(datasets.group, name="datasets", rich_help_panel="Look")
app.add_typer(keys.group, name="keys", rich_help_panel="Start")
app.add_typer(adapters.group, name="adapters", rich_help_panel="Trained adapters")
flow_help(app)


def main() -> None:
    """Run the command line."""
    app(prog_name="fimlora")
